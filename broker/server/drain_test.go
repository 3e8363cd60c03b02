package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// TestDrain: a replica that is told to stop says so at once, and serves everything until the time is over.
func TestDrain(t *testing.T) {
	const drain = 3 * time.Second
	r := startFederated(t, nil, func(c *server.Config) { c.Drain = drain })
	if status, text := readyz(t, r.OpsAddr()); status != http.StatusOK {
		t.Fatalf("before: %d %s", status, text)
	}
	told := time.Now()
	r.stop()
	r.eventually("it says that it is stopping", func() bool {
		status, text := readyz(t, r.OpsAddr())
		return status == http.StatusServiceUnavailable && strings.Contains(text, "stopping")
	})
	if err := r.Ready(); !errors.Is(err, httpapi.ErrStopping) {
		t.Errorf("Ready: %v", err)
	}
	c := r.client(reportID) // on a new connection
	begun := c.begin()
	var who wire.Whoami
	if c.get(wire.PathWhoami).into(t, &who); !who.Replica.Ready {
		t.Errorf("it issues, and tells workloads that it does not: %+v", who.Replica)
	}
	if got := c.end(begun.Task.ID, "completed"); got.status != http.StatusOK {
		t.Errorf("end: %d %s", got.status, got.body)
	}
	workload := r.Listening()["workload"]
	r.eventually("it has stopped", func() bool {
		conn, err := net.Dial("tcp", workload)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if took := time.Since(told); took < drain {
		t.Errorf("it has served for %s", took)
	}
}

// TestNobodyToDrain: a replica that never had an SVID stops at once.
func TestNobodyToDrain(t *testing.T) {
	dir := t.TempDir()
	nowhere := identity.Files{Cert: dir + "/none", Key: dir + "/none", Bundle: dir + "/none"}
	s, err := server.New(server.Config{
		WorkloadAddr: "127.0.0.1:0", PublicAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", Registry: known(t), AuditLog: dir + "/audit.jsonl",
		Identity: identity.FromFiles(nowhere, slog.New(slog.DiscardHandler)), Drain: server.MaxDrain,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it is still there")
	}
}

func TestDrainBounds(t *testing.T) {
	for _, d := range []time.Duration{-1, server.MaxDrain + 1} {
		_, err := server.New(server.Config{Identity: identity.FromWorkloadAPI("unix:///nowhere", nil), Registry: known(t), AuditLog: "x", Drain: d})
		var bad *server.ConfigError
		if !errors.As(err, &bad) || bad.Field != "Drain" {
			t.Errorf("%s: %v", d, err)
		}
	}
}

// readyz asks an ops listener whether its replica is ready. The status is 0 when nobody answers.
func readyz(t testing.TB, ops string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Get(fmt.Sprintf("http://%s/readyz", ops))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

// balancer leads a site's addresses to one replica, and to another when that says that it is not ready, or says
// nothing. It learns so from /readyz alone, and does not try another when a replica refuses a connection.
type balancer struct {
	site  *site
	every time.Duration

	mu      sync.Mutex
	members []*member
	active  *member
}

// balance runs a balancer until the test ends. There must be a member that is ready.
func (s *site) balance(every time.Duration, members ...*member) *balancer {
	s.t.Helper()
	b := &balancer{site: s, every: every, members: members}
	b.check()
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				b.check()
			}
		}
	})
	s.t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return b
}

// add tells the balancer of one more replica.
func (b *balancer) add(m *member) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = append(b.members, m)
}

// check looks whether the active replica is ready, and for another that is.
func (b *balancer) check() {
	b.mu.Lock()
	members, active := append([]*member{b.active}, b.members...), b.active
	b.mu.Unlock()
	for _, m := range members {
		if m == nil {
			continue
		}
		if status, _ := readyz(b.site.t, m.at["ops"]); status != http.StatusOK {
			continue
		}
		if m != active {
			m.serve()
			b.mu.Lock()
			b.active = m
			b.mu.Unlock()
		}
		return
	}
}

// leadsTo is the replica that gets new connections now.
func (b *balancer) leadsTo() *member {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.active
}
