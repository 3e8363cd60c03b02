package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// site is a real Redis with replicas beside it, and one address for the workload listeners and one for
// the public ones, as a load balancer has. Every replica reaches Redis by a way of its own.
type site struct {
	t        testing.TB
	ca       *devmode.CA
	dir      string
	socket   string // of the broker's identity
	shards   int
	drain    time.Duration // of replicas that start from now on
	seal     *keys.Seal
	redis    *redistest.Server
	workload *redistest.Proxy
	public   *redistest.Proxy
	known    *registry.Registry
}

// workloads of a site: enough for every shard to have one.
const workloads = 12

func workloadName(i int) string { return fmt.Sprintf("spiffe://prod/batch-%d", i%workloads) }

func newSite(t testing.TB, shards int, redisArgs ...string) *site {
	t.Helper()
	s := &site{t: t, shards: shards, redis: redistest.Start(t, redisArgs...)}
	var err error
	if s.ca, err = devmode.NewCA("prod", devmode.Options{}); err != nil {
		t.Fatal(err)
	}
	if s.dir, err = os.MkdirTemp("", "errand-test-"); err != nil { // shorter than t.TempDir: a socket's path is bounded
		t.Fatal(err)
	}
	api := devmode.NewWorkloadAPI(s.ca, s.dir, time.Hour)
	if s.socket, err = api.Add(spiffeid.RequireFromString(brokerID)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		os.RemoveAll(s.dir)
	})
	if s.seal, err = keys.NewSeal([]byte(strings.Repeat("k", 32))); err != nil {
		t.Fatal(err)
	}
	text := inventory
	for i := range workloads {
		text += fmt.Sprintf("  - {id: %s, owner: team-fin, purpose: batches, ceiling: {orders: [\"orders:read\"]}, max_tasks: 200000, max_grants: 1000000}\n", workloadName(i))
	}
	if s.known, err = registry.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	nowhere := fmt.Sprintf("127.0.0.1:%d", redistest.FreePort(t))
	s.workload, s.public = redistest.Between(t, nowhere), redistest.Between(t, nowhere)
	return s
}

// member is one replica of a site.
type member struct {
	*replica
	site  *site
	redis *redistest.Proxy
	at    map[string]string // where it listens, whatever it is reached by
	done  chan error
}

// start starts a replica and waits until it is ready. It ends with the test, or by halt.
func (s *site) start(name string) *member {
	s.t.Helper()
	m := s.boot(name)
	m.eventually(name+" is ready", func() bool { return m.Ready() == nil })
	return m
}

// boot starts a replica without waiting.
func (s *site) boot(name string) *member {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	m := &member{site: s, redis: redistest.Between(s.t, s.redis.Addr()), done: make(chan error, 1)}
	m.replica = &replica{t: s.t, ca: s.ca, dir: dir, logs: &output{}}
	store, err := redis.New(s.t.Context(), redis.Config{URL: m.redis.URL(), Shards: s.shards, Logger: m.logger()})
	if err != nil {
		s.t.Fatal(err)
	}
	source := identity.FromWorkloadAPI(s.socket, slog.New(slog.DiscardHandler))
	m.Server, err = server.New(server.Config{
		Store: store, WorkloadAddr: "127.0.0.1:0", PublicAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Issuer: "https://" + s.public.Addr(), BrokerURL: "https://" + s.workload.Addr(),
		SharedKeys: &server.SharedKeys{Record: store.Record("keys"), Seal: s.seal},
		Identity:   source, Registry: s.known, AuditLog: filepath.Join(dir, "audit.jsonl"), Logger: m.logger(), Drain: s.drain,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	m.at = m.Listening()
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	go func() {
		err := m.Run(ctx)
		m.done <- errors.Join(err, store.Close())
	}()
	s.t.Cleanup(m.halt)
	return m
}

// halt stops a replica as SIGTERM does, and waits. It may be called again.
func (m *member) halt() {
	m.stop()
	err := <-m.done
	m.done <- nil
	if err != nil {
		m.t.Errorf("Run: %v", err)
	}
}

// serve makes this replica the one that the site's addresses lead to.
func (m *member) serve() {
	m.site.workload.Point(m.at["workload"])
	m.site.public.Point(m.at["public"])
}

// url is the replica's own workload listener.
func (m *member) url() string { return "https://" + m.at["workload"] }

// here is a client of this replica, whoever the site's address leads to.
func (m *member) here(id string) *caller {
	c := m.client(id)
	c.base = m.url()
	return c
}

// holder is a workload with its own certificate at one replica, and as a verifier sees it.
func (m *member) holder(id string) (*caller, *verify.Peer) {
	c, peer := m.bearer(id)
	c.base = m.url()
	return c, peer
}

// verifierOf is a resource server's, connected to this replica, with a bound for its staleness.
func (m *member) verifierOf(stale time.Duration) *verify.Verifier {
	m.t.Helper()
	m.serve()
	toBroker, err := verifyspiffe.TLS(m.source(ordersID), brokerID)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	v, err := verify.New(ctx, verify.Config{Issuer: m.Issuer(), Audience: "orders", TLS: toBroker, MaxStale: stale})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { v.Close() })
	return v
}

// TestP1_EndAtAnotherReplica: a token from one replica, ended at the other, is refused by verifiers on
// both.
func TestP1_EndAtAnotherReplica(t *testing.T) {
	s := newSite(t, 1)
	a, b := s.start("a"), s.start("b")
	verifiers := map[string]*verify.Verifier{"a": a.verifierOf(0), "b": b.verifierOf(0)}
	var took []time.Duration
	for i := range 20 {
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		c, peer := from.holder(reportID)
		begun := c.begin()
		token := begun.Tokens[0].AccessToken
		for name, v := range verifiers {
			if _, err := v.Verify(t.Context(), token, peer, verify.Scope("orders:read")); err != nil {
				t.Fatalf("a live token, by the verifier on %s: %v", name, err)
			}
		}
		c.base = to.url()
		if got := c.end(begun.Task.ID, "completed"); got.status != http.StatusOK {
			t.Fatalf("end: %d %s", got.status, got.body)
		}
		answered := time.Now()
		for name, v := range verifiers {
			to.eventually("the verifier on "+name+" refuses", func() bool {
				_, err := v.Verify(t.Context(), token, peer)
				return errors.Is(err, verify.ErrRevoked)
			})
		}
		took = append(took, time.Since(answered))
		for _, m := range []*member{a, b} {
			var grant wire.Grant
			c.base = m.url()
			if c.get("/v1/grants/"+begun.Tokens[0].GrantID).into(t, &grant); grant.Live {
				t.Fatal("a look-up says that it is alive")
			}
		}
	}
	refusedInTime(t, took)
}

// TestVerifierChangesReplicas moves a verifier from one replica to the other again and again while
// tasks in all shards end at both: it misses none, and refuses nothing that is alive.
func TestVerifierChangesReplicas(t *testing.T) {
	s := newSite(t, 4)
	a, b := s.start("a"), s.start("b")
	members := []*member{a, b}
	v := a.verifierOf(0)
	type held struct {
		id, token string
		peer      *verify.Peer
	}
	var ended, alive []held
	for round := range 8 {
		var now []held
		for i := range workloads {
			c, peer := members[i%2].holder(workloadName(i))
			begun := c.begin()
			h := held{begun.Task.ID, begun.Tokens[0].AccessToken, peer}
			if i%3 == 0 {
				alive = append(alive, h)
				continue
			}
			now = append(now, h)
			if i == workloads/2 {
				members[round%2].serve()
				s.workload.Reset()
			}
			c.base = members[(i/2)%2].url()
			if got := c.end(h.id, "completed"); got.status != http.StatusOK {
				t.Fatalf("end: %d %s", got.status, got.body)
			}
		}
		ended = append(ended, now...)
	}
	for _, h := range ended {
		a.eventually("a token that was ended is refused", func() bool {
			_, err := v.Verify(t.Context(), h.token, h.peer)
			return errors.Is(err, verify.ErrRevoked)
		})
	}
	for _, h := range alive {
		if _, err := v.Verify(t.Context(), h.token, h.peer); err != nil {
			t.Errorf("a live token: %v", err)
		}
	}
}

// TestRollingRestart replaces one replica after the other while a client works, behind a balancer that knows no
// more than /readyz says: no call of the client fails.
func TestRollingRestart(t *testing.T) {
	s := newSite(t, 1)
	s.drain = 3 * time.Second
	a, b := s.start("a"), s.start("b")
	front := s.balance(500*time.Millisecond, a, b)
	source := a.source(reportID)
	client, err := sdk.New(t.Context(), sdk.WithBroker("https://"+s.workload.Addr()), sdk.WithBrokerID(spiffeid.RequireFromString(brokerID)),
		sdk.WithIdentity(sdk.FromSource(source, source)), sdk.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(context.Background()) })
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	var workers sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range 4 {
		workers.Go(func() {
			for ctx.Err() == nil {
				if err := work(t.Context(), client); err != nil {
					t.Errorf("a call of the client: %v", err)
					return
				}
				mu.Lock()
				done++
				mu.Unlock()
			}
		})
	}
	progress := func() {
		t.Helper()
		mu.Lock()
		before := done
		mu.Unlock()
		a.eventually("the client gets on with its work", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return done > before+5 || t.Failed()
		})
	}
	for range 2 {
		progress()
		m := front.leadsTo()
		m.halt()
		if front.leadsTo() == m {
			t.Error("the balancer has not noticed")
		}
		progress()
		front.add(s.start("after-" + filepath.Base(m.dir)))
	}
	progress()
	enough()
	workers.Wait()
	t.Logf("%d tasks", done)
}

// work is a task with two tokens.
func work(ctx context.Context, client *sdk.Client) error {
	return client.Do(ctx, sdk.TaskSpec{Name: "rolling", Purpose: "a restart that nobody notices"}, func(ctx context.Context, task *sdk.Task) error {
		for _, audience := range []string{"orders", "files"} {
			if _, err := task.Token(ctx, sdk.TokenRequest{Audience: audience}); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestManyGrants puts 100 000 live grants into a Redis with four shards. A replica that starts beside
// them is ready within a second; and P14: an operator's selector kills them all, for look-ups at every
// replica and at verifiers, within a second of the call, by one entry for each shard.
func TestManyGrants(t *testing.T) {
	const tasks, each = 200, 500
	s := newSite(t, 4)
	first := s.start("first")
	filler, err := redis.New(t.Context(), redis.Config{URL: s.redis.URL(), Shards: s.shards})
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	sample := map[broker.GrantID]string{} // the workload of one grant of each task
	for i := range tasks {
		req := manyGrants(workloadName(i), i%s.shards, each)
		if _, err := filler.Grant(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		sample[req.Grants[0].ID] = req.Workload.String()
	}
	began := time.Now()
	second := s.start("second")
	if took := time.Since(began); took > busy(time.Second) {
		t.Errorf("ready after %s", took)
	}
	v := first.verifierOf(0)
	c, peer := second.holder(workloadName(0))
	begun := c.begin()
	if _, err := v.Verify(t.Context(), begun.Tokens[0].AccessToken, peer); err != nil {
		t.Fatalf("a live token: %v", err)
	}
	before := first.entries()

	began = time.Now()
	receipt, err := second.Broker().Revoke(t.Context(), broker.Revocation{
		Selector: broker.Selector{Subject: "spiffe://prod/*"}, Actor: "ada", Reason: "INC-14",
	})
	if err != nil || !receipt.Durable {
		t.Fatalf("%+v, %v", receipt, err)
	}
	first.eventually("the verifier refuses", func() bool {
		_, err := v.Verify(t.Context(), begun.Tokens[0].AccessToken, peer)
		return errors.Is(err, verify.ErrRevoked)
	})
	if took := time.Since(began); took > busy(time.Second) {
		t.Errorf("dead at the verifier after %s", took)
	}
	for id, workload := range sample {
		for _, m := range []*member{first, second} {
			status, err := m.Broker().Grant(t.Context(), broker.Workload{ID: spiffeid.RequireFromString(workload)}, id)
			if err != nil || status.Live {
				t.Fatalf("%s is alive, or: %v", id, err)
			}
		}
	}
	if n := first.entries() - before; n != s.shards {
		t.Errorf("%d entries for one selector in %d shards", n, s.shards)
	}
}

// manyGrants asks for a task with grants that live as long as any.
func manyGrants(workload string, shard, n int) broker.GrantRequest {
	req := broker.GrantRequest{
		Workload: spiffeid.RequireFromString(workload), Task: broker.NewTaskID(shard),
		Begin: &broker.Beginning{Name: "many", Purpose: "to be there", Lease: broker.MaxLease, Deadline: time.Hour},
	}
	for range n {
		req.Grants = append(req.Grants, broker.Asked{
			ID: broker.NewGrantID(shard), Audience: "orders", Scopes: broker.Scopes{"orders:read"}, Life: broker.MaxTokenLife,
		})
	}
	return req
}

// entries is how many denials a replica has for the audience orders.
func (m *member) entries() int {
	m.t.Helper()
	var snapshot wire.FeedSnapshot
	m.here(ordersID).get(wire.PathFeedSnapshot+"?aud=orders").into(m.t, &snapshot)
	return len(snapshot.Entries)
}

// jwks reads what a replica publishes, from its own listener.
func (m *member) jwks() (int, string) {
	m.t.Helper()
	c := m.client("")
	resp, err := c.http.Get("https://" + m.at["public"] + wire.PathJWKS)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestReplicasPublishTheSameKeys, those that start at once included.
func TestReplicasPublishTheSameKeys(t *testing.T) {
	s := newSite(t, 1)
	var members []*member
	for _, name := range []string{"a", "b", "c"} {
		members = append(members, s.boot(name))
	}
	_, want := members[0].jwks()
	for _, m := range members {
		m.eventually("it is ready", func() bool { return m.Ready() == nil })
		if status, got := m.jwks(); status != http.StatusOK || got != want {
			t.Errorf("got %d %s; want %s", status, got, want)
		}
	}
}
