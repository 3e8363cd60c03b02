package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	inventoryFile = "inventory.yaml"
	trustDomain   = "bench.errand"
	maxClients    = 1000

	// perServer is how many verifiers share one identity; a replica takes 32.
	perServer = 25

	startTimeout = 20 * time.Second
)

// place is everything that a run needs, each in a process of its own but the load generator.
type place struct {
	dir              string
	url              string // of Redis
	redis            *exec.Cmd
	broker           *exec.Cmd
	at               at
	api              *devmode.WorkloadAPI
	cancel           func()
	served           chan error
	report, operator *devmode.Identity
	servers          []*devmode.Identity
	client           *tls.Config

	profiled string // the load that the broker profiles
}

func name(s string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(trustDomain), "/"+s)
}

func newPlace(ctx context.Context, o options) (_ *place, err error) {
	dir, err := os.MkdirTemp("", "errand-bench-")
	if err != nil {
		return nil, err
	}
	p := &place{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := p.startRedis(ctx); err != nil {
		return p, err
	}
	servers := 1
	for _, n := range o.verifiers {
		servers = max(servers, (n+perServer-1)/perServer)
	}
	if err := p.identities(ctx, servers); err != nil {
		return p, err
	}
	return p, p.startBroker(ctx, o.profile)
}

func (p *place) startRedis(ctx context.Context) error {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return fmt.Errorf("%w; install redis-server 7.0 or later", err)
	}
	socket := filepath.Join(p.dir, "redis.sock")
	p.url = "unix://" + socket
	p.redis = exec.Command(binary, "--port", "0", "--unixsocket", socket, "--dir", p.dir, "--save", "", "--appendonly", "no",
		"--logfile", filepath.Join(p.dir, "redis.log"))
	if err := p.redis.Start(); err != nil {
		return err
	}
	for {
		if _, err := p.info("server"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("redis-server did not start: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// info asks Redis about itself.
func (p *place) info(section string) (map[string]string, error) {
	conn, err := net.Dial("unix", filepath.Join(p.dir, "redis.sock"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "INFO %s\r\n", section); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	var size int
	if _, err := fmt.Fscanf(r, "$%d\r\n", &size); err != nil {
		return nil, err
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, err
	}
	facts := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		facts[key] = value
	}
	return facts, nil
}

// identities serves an SVID to the broker, to the workload, and to each server.
func (p *place) identities(ctx context.Context, servers int) error {
	ca, err := devmode.NewCA(trustDomain, devmode.Options{})
	if err != nil {
		return err
	}
	p.api = devmode.NewWorkloadAPI(ca, p.dir, time.Hour)
	names := []string{"broker", "report", "operator"}
	for i := range servers {
		names = append(names, fmt.Sprintf("orders-%d", i))
	}
	sockets := map[string]string{}
	for _, n := range names {
		if sockets[n], err = p.api.Add(name(n)); err != nil {
			return err
		}
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel, p.served = cancel, make(chan error, 1)
	go func() { p.served <- p.api.Run(running) }()
	for _, n := range names[1:] {
		who, err := devmode.Open(ctx, sockets[n])
		if err != nil {
			return err
		}
		switch n {
		case "report":
			p.report, p.client = who, who.ClientTLS()
		case "operator":
			p.operator = who
		default:
			p.servers = append(p.servers, who)
		}
	}
	p.at.Broker = sockets["broker"]
	return p.writeInventory(names[3:])
}

func (p *place) writeInventory(servers []string) error {
	ids := make([]string, len(servers))
	for i, n := range servers {
		ids[i] = name(n).String()
	}
	text := fmt.Sprintf(`audiences:
  - {name: orders, owner: shop, hosts: [orders.internal], scopes: ["orders:read", "orders:write"], servers: [%s]}
workloads:
  - {id: %s, owner: fin, purpose: nightly exports, ceiling: {orders: ["orders:read"]}, max_tasks: 10000000, max_grants: 10000000}
`, strings.Join(ids, ", "), name("report"))
	return os.WriteFile(filepath.Join(p.dir, inventoryFile), []byte(text), 0o600)
}

func (p *place) startBroker(ctx context.Context, profile string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p.broker = exec.Command(self, brokerCommand, p.at.Broker, p.url, p.dir, profile)
	p.broker.Stderr = os.Stderr
	out, err := p.broker.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.broker.Start(); err != nil {
		return err
	}
	if err := json.NewDecoder(out).Decode(&p.at); err != nil {
		return fmt.Errorf("the broker did not start: %w", err)
	}
	return p.ready(ctx)
}

// ready waits until the broker would get traffic.
func (p *place) ready(ctx context.Context) error {
	for {
		if status, err := p.ops("/readyz"); err == nil && strings.HasPrefix(status, "ready") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the broker is not ready: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// close ends what was started, by its own processes alone.
func (p *place) close() error {
	for _, who := range p.servers {
		_ = who.Close()
	}
	for _, who := range []*devmode.Identity{p.report, p.operator} {
		if who != nil {
			_ = who.Close()
		}
	}
	for _, c := range []*exec.Cmd{p.broker, p.redis} {
		if c != nil && c.Process != nil {
			_ = c.Process.Signal(syscall.SIGTERM)
			_ = c.Wait()
		}
	}
	if p.cancel != nil {
		p.cancel()
		<-p.served
	}
	return os.RemoveAll(p.dir)
}
