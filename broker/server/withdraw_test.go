package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const agentID = "spiffe://partner/agent"

func newPartner(t testing.TB) *devmode.CA {
	t.Helper()
	ca, err := devmode.NewCA("partner", devmode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// foreigner is a caller of another trust domain.
func (r *replica) foreigner(ca *devmode.CA, id string) (*caller, *verify.Peer) {
	r.t.Helper()
	svid, err := ca.Issue(spiffeid.RequireFromString(id), time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: r.roots(), MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
	}}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &caller{r: r, base: r.BrokerURL(), http: &http.Client{Transport: transport, Timeout: 10 * time.Second}}, &verify.Peer{Certificate: cert.Leaf}
}

// audited returns the lines of the audit log of a kind with the cause identity.
func (r *replica) audited(kind string) (lines []map[string]any) {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, "audit.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			continue // it is being written
		}
		if e["kind"] == kind && e["cause"] == string(broker.CauseIdentity) {
			lines = append(lines, e)
		}
	}
	return lines
}

func (r *replica) task(id string) broker.Task {
	r.t.Helper()
	record, err := r.store.Lookup(r.t.Context(), broker.Ref{Task: broker.TaskID(id)})
	if err != nil {
		r.t.Fatal(err)
	}
	return record.Task
}

// A workload of a federated trust domain works until the domain is removed: then its open connection
// and its token are refused, its task ends, and the audit log says why. Ours go on.
func TestRemovingATrustDomainEndsItsTasks(t *testing.T) {
	partner := newPartner(t)
	r := start(t, partner.Bundle())
	v := r.verifier()
	theirs, peer := r.foreigner(partner, agentID)
	ours, ourPeer := r.bearer(reportID)
	task, stays := theirs.begin(), ours.begin()
	for _, c := range []struct {
		begun wire.BeginResponse
		peer  *verify.Peer
	}{{task, peer}, {stays, ourPeer}} {
		if _, err := v.Verify(t.Context(), c.begun.Tokens[0].AccessToken, c.peer, verify.Scope("orders:read")); err != nil {
			t.Fatalf("before: %v", err)
		}
	}

	r.agent.Federate()
	r.eventually("the open connection is refused", func() bool {
		return theirs.get(wire.PathWhoami).status == http.StatusUnauthorized
	})
	r.eventually("the token is refused", func() bool {
		_, err := v.Verify(t.Context(), task.Tokens[0].AccessToken, peer, verify.Scope("orders:read"))
		return errors.Is(err, verify.ErrRevoked)
	})
	r.eventually("the task has ended", func() bool { return r.task(task.Task.ID).State.Final() })
	if got := r.task(task.Task.ID); got.State != broker.Revoked || got.Cause != broker.CauseIdentity {
		t.Errorf("the task is %s by %s", got.State, got.Cause)
	}
	r.eventually("the audit log has the end", func() bool { return len(r.audited("task.ended")) == 1 })
	e := r.audited("task.ended")[0]
	if e["actor"] != "errand" || e["workload"] != agentID || !strings.Contains(e["reason"].(string), "partner") {
		t.Errorf("the audit log says %v", e)
	}
	if revoked := r.audited("selector.revoked"); len(revoked) == 0 || revoked[0]["actor"] != "errand" {
		t.Errorf("the audit log has of the tokens: %v", revoked)
	}

	// Ours are not touched, and the partner may come back.
	if _, err := v.Verify(t.Context(), stays.Tokens[0].AccessToken, ourPeer, verify.Scope("orders:read")); err != nil {
		t.Errorf("our own token: %v", err)
	}
	r.agent.Federate(partner.Bundle())
	again, againPeer := r.foreigner(partner, agentID)
	r.eventually("the domain is trusted again", func() bool {
		resp, err := again.http.Get(r.BrokerURL() + wire.PathWhoami)
		return err == nil && resp.Body.Close() == nil
	})
	token := again.begin().Tokens[0].AccessToken
	if _, err := v.Verify(t.Context(), token, againPeer, verify.Scope("orders:read")); err != nil {
		t.Errorf("a new token of a domain that came back: %v", err)
	}
}

// plant begins a task behind the replica's back, as another replica would have.
func (r *replica) plant(workload string) broker.TaskID {
	r.t.Helper()
	return plant(r.t, r.store, workload)
}

func plant(t testing.TB, store broker.Store, workload string) broker.TaskID {
	t.Helper()
	req := broker.GrantRequest{
		Workload: spiffeid.RequireFromString(workload), Task: broker.NewTaskID(0),
		Begin: &broker.Beginning{Name: "sync", Purpose: "left over", Lease: time.Minute, Deadline: time.Hour},
	}
	for {
		reply, err := store.Grant(t.Context(), req)
		if behind, ok := errors.AsType[*broker.Behind](err); ok {
			req.Control = behind.Version
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return reply.Task.ID
	}
}

// flaky is a store whose ends fail for a while, and that counts how often all tasks are looked at.
type flaky struct {
	broker.Store
	looks    atomic.Int32
	failures atomic.Int32 // that are still to come
	failed   atomic.Int32
}

func (f *flaky) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	if !q.Due {
		f.looks.Add(1)
	}
	return f.Store.List(ctx, q)
}

func (f *flaky) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	if f.failures.Add(-1) >= 0 {
		f.failed.Add(1)
		return nil, broker.ErrUnavailable
	}
	return f.Store.End(ctx, ends)
}

// A domain that is not configured any more is noticed by the tasks that it left; what begins late is
// found too, and a store that fails only delays it.
func TestTasksOfADomainThatIsNotThereAnyMore(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	source := identity.FromFiles(a.files(dir, a.issue(brokerID, nil)), nil)
	var store *flaky
	r := startWith(t, dir, source, func(c *server.Config) {
		store = &flaky{Store: c.Store}
		store.failures.Store(3)
		c.Store = store
	})
	for _, when := range []string{"left over", "late"} {
		id := string(r.plant(agentID))
		r.eventually(when+": the task has ended", func() bool { return r.task(id).State.Final() })
		if got := r.task(id); got.State != broker.Revoked || got.Cause != broker.CauseIdentity {
			t.Errorf("%s: the task is %s by %s", when, got.State, got.Cause)
		}
	}
	if store.failed.Load() != 3 {
		t.Errorf("the store failed %d times", store.failed.Load())
	}
}

// TestAnOutageIsSaidOnce, and when it is over, however often the store is asked: by requests, and by looks at the
// tasks of a trust domain that is not there any more.
func TestAnOutageIsSaidOnce(t *testing.T) {
	b := failing(away)
	var store *flaky
	r := startFederated(t, []*x509bundle.Bundle{newPartner(t).Bundle()}, func(c *server.Config) {
		store = &flaky{Store: b.store(c.Store)}
		c.Store = store
	})
	c := r.client(reportID)
	c.begin()
	b.fail()
	failed := time.Now()
	r.agent.Federate()
	looks := store.looks.Load()
	r.eventually("the tasks are looked at five times", func() bool { return store.looks.Load() >= looks+5 })
	var last answer
	for range 5 {
		if last = c.post(wire.PathTasks, beginBody); last.name() != wire.ProblemStoreUnavailable {
			t.Fatalf("begin: %d %s", last.status, last.body)
		}
	}
	const looking = "tasks of trust domains that are not trusted any more "
	said := r.logs.lines("ERROR")
	for what, n := range said {
		if n > 1 && time.Since(failed) < 30*time.Second {
			t.Errorf("the log has %d times: %s", n, what)
		}
	}
	if said["requests fail"] == 0 || said[looking+"could not all be found and ended; it is tried again"] == 0 {
		t.Errorf("the log has only %v", said)
	}
	if n := r.logs.lines("DEBUG")["request failed"]; n != 5 || !strings.Contains(r.logs.String(), last.problem.RequestID) {
		t.Errorf("of the requests that failed %d are in it", n)
	}
	b.mend()
	r.eventually("the log says that it is over", func() bool { return r.logs.lines("INFO")[looking+"are found and ended again"] == 1 })
}

// A domain that is configured, and whose bundle has not come yet, is refused, and keeps its tasks.
func TestTasksOfADomainThatHasNotAnsweredYet(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	source := identity.FromFiles(a.files(dir, a.issue(brokerID, nil)), nil)
	source.Poll = 5 * time.Millisecond
	file := filepath.Join(dir, "partner.json")
	if err := source.Federate(identity.Federation{TrustDomain: "partner", File: file}); err != nil {
		t.Fatal(err)
	}
	var now atomic.Pointer[time.Time]
	source.Now = func() time.Time {
		if at := now.Load(); at != nil {
			return *at
		}
		return time.Now()
	}
	var store *flaky
	var id string
	r := startWith(t, dir, source, func(c *server.Config) {
		id = string(plant(t, c.Store, agentID))
		store = &flaky{Store: c.Store}
		c.Store = store
	})
	if err := r.Ready(); err != nil {
		t.Errorf("a partner that is silent makes the replica not ready: %v", err)
	}
	r.eventually("the tasks are looked at", func() bool { return store.looks.Load() > 0 })
	if got := r.task(id); got.State.Final() {
		t.Fatalf("the task is %s by %s", got.State, got.Cause)
	}
	// Until it is too late.
	late := time.Now().Add(identity.DefaultMaxAge + time.Minute)
	now.Store(&late)
	r.eventually("the task has ended", func() bool { return r.task(id).State.Final() })
}

// A replica whose own bundle is too old refuses everybody, and says that it is not ready.
func TestOwnBundleTooOld(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	f := a.files(dir, a.issue(brokerID, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(100 * time.Hour) }))
	said := &output{}
	source := identity.FromFiles(f, slog.New(slog.NewTextHandler(said, nil)))
	source.Poll = 5 * time.Millisecond
	var late atomic.Bool
	source.Now = func() time.Time {
		if late.Load() {
			return time.Now().Add(identity.DefaultMaxAge + time.Hour)
		}
		return time.Now()
	}
	r := startWith(t, dir, source)
	own := string(r.plant(reportID))
	if err := os.Remove(f.Bundle); err != nil {
		t.Fatal(err)
	}
	r.eventually("it is noticed", func() bool { return strings.Contains(said.String(), "no such file") })
	if err := r.Ready(); err != nil {
		t.Errorf("before MaxAge: %v", err)
	}
	late.Store(true)
	r.eventually("the replica is not ready", func() bool { return r.Ready() != nil })
	if err := r.Ready(); !errors.Is(err, broker.ErrNotReady) || !strings.Contains(err.Error(), "too old") {
		t.Errorf("Ready says %v", err)
	}
	if got := r.task(own); got.State.Final() {
		t.Errorf("a task of our own domain is %s by %s", got.State, got.Cause)
	}
}

func TestWithdrawalIsBounded(t *testing.T) {
	a, dir := newAuthority(t), t.TempDir()
	for d, good := range map[time.Duration]bool{server.MaxWithdrawal: true, server.MaxWithdrawal + 1: false, -1: false} {
		c := server.Config{
			WorkloadAddr: "127.0.0.1:0", PublicAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", AuditLog: filepath.Join(dir, "audit.jsonl"),
			Identity: identity.FromFiles(a.files(dir, a.issue(brokerID, nil)), nil), Registry: known(t), Withdrawal: d,
		}
		s, err := server.New(c)
		if mistake, ok := errors.AsType[*server.ConfigError](err); (err == nil) != good || err != nil && (!ok || mistake.Field != "Withdrawal") {
			t.Errorf("%v: %v", d, err)
		}
		if err == nil {
			s.Close()
		}
	}
}
