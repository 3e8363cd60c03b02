// Package demo is the broker on a machine that has nothing but Go: a dev CA with a real SPIFFE
// Workload API, one broker replica with the memory store, and a sample resource server. Start it
// with Start; Tour walks through the life of a token on it.
//
// Everything listens on loopback addresses and Unix sockets alone, and Close takes all of it away.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The names of a local environment.
const (
	TrustDomain = "dev.errand"
	BrokerName  = "errand"
	OrdersName  = "orders" // the sample resource server, and its audience

	OperatorName = "operator" // may do everything on the operator listener
)

// reserved identities are always there.
var reserved = []string{BrokerName, OrdersName, OperatorName}

// Config describes a local environment. Zero values pick free ports.
type Config struct {
	Dir          string   // for sockets, the audit log and the description; private to the user. Required.
	Identities   []string // workloads that are registered and get a Workload API socket each
	Strangers    []string // identities that get a socket and are not registered
	Inventory    string   // a registry file to use instead of the sample one. Optional.
	WorkloadAddr string
	PublicAddr   string
	OperatorAddr string
	OpsAddr      string
	OrdersAddr   string
	Algorithm    keys.Algorithm
	Version      string // of the program
	Logger       *slog.Logger
}

// Local is a running local environment.
type Local struct {
	Description
	Server *server.Server
	Took   time.Duration // to serve all identities

	dir     string
	api     *devmode.WorkloadAPI
	source  *identity.Source
	orders  *orders
	cancel  context.CancelFunc
	stopped chan error

	stopOrders  context.CancelFunc
	ordersEnded chan struct{}
}

// Description is what another process must know to use a local environment. It holds no secret.
type Description struct {
	Issuer    string            `json:"issuer"`
	BrokerURL string            `json:"broker_url"`
	BrokerID  string            `json:"broker_id"`
	OrdersURL string            `json:"orders_url"`
	Operator  string            `json:"operator_url"`
	OpsURL    string            `json:"ops_url"`
	AuditLog  string            `json:"audit_log"`
	Sockets   map[string]string `json:"sockets"` // Workload API addresses by identity
}

const descriptionFile = "dev.json"

// Start brings a local environment up and returns when it can be used. ctx bounds the start alone.
func Start(ctx context.Context, c Config) (_ *Local, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &Local{dir: c.Dir, cancel: cancel, stopped: make(chan error, 3)}
	l.BrokerID = id(BrokerName).String()
	l.AuditLog = filepath.Join(c.Dir, "audit.jsonl")
	running := 0
	spawn := func(f func(context.Context) error) {
		running++
		go func() { l.stopped <- f(run) }()
	}
	defer func() {
		if err != nil {
			cancel()
			for range running {
				<-l.stopped
			}
		}
	}()
	begin := time.Now()
	if err := l.serveIdentities(c, spawn); err != nil {
		return nil, err
	}
	l.Took = time.Since(begin)
	return l, l.serve(ctx, c, spawn)
}

func (c *Config) check() error {
	for _, addr := range []*string{&c.WorkloadAddr, &c.PublicAddr, &c.OperatorAddr, &c.OpsAddr, &c.OrdersAddr} {
		if *addr == "" {
			*addr = "127.0.0.1:0"
		}
		host, _, err := net.SplitHostPort(*addr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return fmt.Errorf("the address %q is not allowed: a development broker listens on loopback alone, as on 127.0.0.1:8443", *addr)
		}
	}
	for i, name := range slices.Concat(c.Identities, c.Strangers) {
		if err := checkName(name, append(reserved[:len(reserved):len(reserved)], c.Identities[:min(i, len(c.Identities))]...)); err != nil {
			return err
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// checkName wants one segment of a SPIFFE ID that nobody has yet.
func checkName(name string, taken []string) error {
	if _, err := spiffeid.FromString("spiffe://" + TrustDomain + "/" + name); err != nil || strings.Contains(name, "/") {
		return fmt.Errorf("the identity %q is not allowed: use letters, digits, dots, dashes and underscores", name)
	}
	if slices.Contains(taken, name) {
		return fmt.Errorf("the identity %q is there already: choose another name", name)
	}
	return nil
}

func (l *Local) serveIdentities(c Config, spawn func(func(context.Context) error)) error {
	ca, err := devmode.NewCA(TrustDomain, devmode.Options{})
	if err != nil {
		return err
	}
	l.api = devmode.NewWorkloadAPI(ca, c.Dir, time.Hour)
	l.Sockets = map[string]string{}
	for _, name := range slices.Concat(reserved, c.Identities, c.Strangers) {
		if l.Sockets[name], err = l.api.Add(id(name)); err != nil {
			return err
		}
	}
	spawn(l.api.Run)
	return nil
}

// serve starts the resource server's listener first, since the registry names its address.
func (l *Local) serve(ctx context.Context, c Config, spawn func(func(context.Context) error)) (err error) {
	ordersListener, err := net.Listen("tcp", c.OrdersAddr)
	if err != nil {
		return fmt.Errorf("the orders server: %w; stop what is using the address, or choose another", err)
	}
	defer func() {
		if err != nil {
			ordersListener.Close()
		}
	}()
	l.OrdersURL = "https://" + ordersListener.Addr().String() + "/orders"
	inventory, err := c.inventory(ordersListener.Addr())
	if err != nil {
		return err
	}
	l.source = identity.FromWorkloadAPI(l.Sockets[BrokerName], c.Logger)
	l.Server, err = server.New(server.Config{
		WorkloadAddr: c.WorkloadAddr, PublicAddr: c.PublicAddr, OpsAddr: c.OpsAddr, Identity: l.source,
		OperatorAddr: c.OperatorAddr, Operators: httpapi.Operators{id(OperatorName).String(): broker.RoleAdmin},
		Registry: inventory, AuditLog: l.AuditLog, Algorithm: c.Algorithm, Version: c.Version, Logger: c.Logger,
	})
	if err != nil {
		return err
	}
	l.Issuer, l.BrokerURL, l.OpsURL = l.Server.Issuer(), l.Server.BrokerURL(), "http://"+l.Server.OpsAddr()
	l.Operator = "https://" + l.Server.Listening()["operator"]
	spawn(l.Server.Run)
	if err := l.source.Wait(ctx); err != nil {
		return err
	}
	l.orders, err = newOrders(ctx, ordersListener, l.Description, c.Logger)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stopOrders, l.ordersEnded = stop, make(chan struct{})
	spawn(func(ctx context.Context) error {
		defer close(l.ordersEnded)
		defer context.AfterFunc(ctx, stop)()
		return l.orders.Run(run)
	})
	return l.describe(c.Dir)
}

// inventory is the one that was named, or a sample that registers every identity with the least
// that a first try needs. The second port is that of the example in sdk/examples/orders.
func (c *Config) inventory(orders net.Addr) (*registry.Registry, error) {
	if c.Inventory != "" {
		named, err := registry.Load(c.Inventory)
		if err == nil && !slices.Contains(named.Serves(id(OrdersName)), OrdersName) {
			err = fmt.Errorf("%s: the resource server that runs here is %s: add it to the servers of the audience %s; to do without, see errand dev identities", c.Inventory, id(OrdersName), OrdersName)
		}
		return named, err
	}
	var b strings.Builder
	_, port, _ := net.SplitHostPort(orders.String())
	fmt.Fprintf(&b, `audiences:
  - name: %s
    owner: you
    purpose: the sample resource server
    hosts: ["127.0.0.1:%s", "localhost:%s", "127.0.0.1:8082"]
    scopes: [orders:read, orders:write]
    servers: [%s]
workloads:
`, OrdersName, port, port, id(OrdersName))
	for _, name := range c.Identities {
		fmt.Fprintf(&b, `  - id: %s
    owner: you
    purpose: local development
    ceiling:
      %s: [orders:read]
`, id(name), OrdersName)
	}
	return registry.Parse([]byte(b.String()))
}

func (l *Local) describe(dir string) error {
	text, err := json.MarshalIndent(l.Description, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, descriptionFile), text, 0o600)
}

// ErrNotRunning says that there is no local environment in the folder.
var ErrNotRunning = errors.New("no development broker is running here")

// Describe reads the description of the environment that runs in dir.
func Describe(dir string) (Description, error) {
	var d Description
	text, err := os.ReadFile(filepath.Join(dir, descriptionFile))
	if errors.Is(err, os.ErrNotExist) {
		return d, fmt.Errorf("%w (looked in %s): start one with  errand dev  in another shell; if it runs with another TMPDIR or --dir, name its folder with --dir", ErrNotRunning, dir)
	}
	if err == nil {
		err = devmode.CheckDirectory(dir)
	}
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return d, fmt.Errorf("%s is damaged: stop errand dev and start it again: %w", filepath.Join(dir, descriptionFile), err)
	}
	return d, nil
}

// Socket returns the Workload API address of an identity.
func (d Description) Socket(name string) (string, error) {
	addr, ok := d.Sockets[strings.TrimPrefix(name, "spiffe://"+TrustDomain+"/")]
	if !ok {
		names := slices.Sorted(maps.Keys(d.Sockets))
		return "", fmt.Errorf("there is no identity %q; there are %s. For one more, start errand dev with --identity %s, or errand dev identities with that name", name, strings.Join(names, ", "), name)
	}
	return addr, nil
}

// Alive reports whether the environment still runs.
func (d Description) Alive() bool {
	for _, addr := range d.Sockets {
		conn, err := net.DialTimeout("unix", strings.TrimPrefix(addr, "unix://"), time.Second)
		if err != nil {
			return false
		}
		conn.Close()
	}
	return len(d.Sockets) > 0
}

// Wait returns when a part of the environment has stopped by itself, or ctx has ended.
func (l *Local) Wait(ctx context.Context) error {
	select {
	case err := <-l.stopped:
		l.stopped <- err
		return fmt.Errorf("a part of the local environment stopped: %w", err)
	case <-ctx.Done():
		return nil
	}
}

// Close stops everything and waits for it: the resource server first, whose verifier has things to tell
// the broker.
func (l *Local) Close() error {
	l.stopOrders()
	<-l.ordersEnded
	l.cancel()
	errs := []error{os.Remove(filepath.Join(l.dir, descriptionFile))}
	for range cap(l.stopped) {
		if err := <-l.stopped; err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func id(name string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(TrustDomain), "/"+name)
}
