package broker_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/memory"
)

var ctx = context.Background()

func claims(t *testing.T, token broker.Token) wire.Claims {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token.Secret(), ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var c wire.Claims
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheMainJob(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, withToken)
		if begun.Task.State != broker.Active || len(begun.Tokens) != 1 {
			h.t.Fatalf("got %+v", begun)
		}
		first := begun.Tokens[0]
		if first.Life != broker.DefaultTokenLife || !slices.Equal(first.Hosts, []string{"orders.internal"}) {
			h.t.Errorf("got %+v", first)
		}
		c := claims(h.t, first.Token)
		if c.Issuer != "https://issuer.test" || c.Subject != "spiffe://prod/report" || c.ClientID != c.Subject ||
			c.Audience != "orders" || c.Scope != "orders:read" || c.ID != string(first.Grant.ID) ||
			c.Transaction != string(begun.Task.ID) || c.Task.ID != c.Transaction || !slices.Equal(c.Task.Path, []string{c.Task.ID}) ||
			c.Expiry-c.IssuedAt != 60 || c.Confirmation.X5T != "thumb-report" || c.Epoch[0] == 0 {
			h.t.Errorf("claims %+v", c)
		}
		second := h.issue(report, begun.Task.ID)
		receipt := h.end(report, begun.Task.ID)
		if !receipt.First || receipt.State != broker.Completed || receipt.Cause != broker.CauseCaller || receipt.Grants != 2 || !receipt.Durable {
			h.t.Errorf("receipt %+v", receipt)
		}
		for _, g := range []broker.GrantID{first.Grant.ID, second.Grant.ID} {
			if h.live(report, g) {
				h.t.Errorf("%s is alive after its task", g)
			}
		}
		if entries := h.denied("orders"); len(entries) != 1 || entries[0].Kind != wire.KindTask || entries[0].ID != string(begun.Task.ID) {
			h.t.Errorf("feed: %+v", entries)
		}
		if entries := h.denied("files"); len(entries) != 0 {
			h.t.Errorf("told an audience that had no token: %+v", entries)
		}
		_, err := h.Issue(ctx, workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(h.t, err, broker.ErrEnded)
		again := h.end(report, begun.Task.ID)
		if again.First || again.Event != receipt.Event {
			h.t.Errorf("the second end answered %+v", again)
		}
	})
}

// TestP3_AnEndIsFinalForEveryLookUp: after the end no look-up of any replica calls the grant active
// again, also not while other ends are tried.
func TestP3_AnEndIsFinalForEveryLookUp(t *testing.T) {
	inBubble(t, func(h *harness) {
		other := newHarness(h.t, h.store, nil)
		begun := h.begin(report, withToken)
		h.end(report, begun.Task.ID)
		for range 50 {
			if h.live(report, begun.Tokens[0].Grant.ID) || other.live(report, begun.Tokens[0].Grant.ID) {
				h.t.Fatal("alive after its end")
			}
			if _, err := other.Heartbeat(ctx, workload(report), []broker.Beat{{Task: begun.Task.ID}}); err != nil {
				h.t.Fatal(err)
			}
			if _, err := other.End(ctx, workload(report), begun.Task.ID, broker.EndRequest{State: broker.Failed}); err != nil {
				h.t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(h.audit.of(broker.EventTaskEnded)) + len(other.audit.of(broker.EventTaskEnded)); n != 1 {
			h.t.Errorf("%d ends are in the audit log", n)
		}
	})
}

// TestP5_AMissedHeartbeatEndsTheTask: at exactly last + lease, announced at most a second later,
// and never early.
func TestP5_AMissedHeartbeatEndsTheTask(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Lease = 6 * time.Second })
		id := begun.Task.ID
		for range 5 {
			time.Sleep(2 * time.Second)
			pulses, err := h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: id}})
			if err != nil || pulses[0].Err != nil || pulses[0].Task.State != broker.Active {
				h.t.Fatalf("died early: %+v, %v", pulses, err)
			}
		}
		last := time.Now()
		time.Sleep(6*time.Second - time.Millisecond)
		if task, _ := h.Task(ctx, workload(report), id); task.State != broker.Active {
			h.t.Errorf("%s a millisecond before its lease ends", task.State)
		}
		time.Sleep(time.Millisecond)
		task, _ := h.Task(ctx, workload(report), id)
		if task.State != broker.Lapsed || task.Cause != broker.CauseLease || task.Ended.Sub(last) != 6*time.Second {
			h.t.Errorf("%s by %s after %s", task.State, task.Cause, task.Ended.Sub(last))
		}
		if h.live(report, begun.Tokens[0].Grant.ID) {
			h.t.Error("its grant is alive")
		}
		time.Sleep(time.Second)
		if !h.names("orders", string(id)) {
			h.t.Error("not announced after a second")
		}
		ends := h.audit.of(broker.EventTaskEnded)
		if len(ends) != 1 || ends[0].State != broker.Lapsed || ends[0].Actor != "errand" || ends[0].Time.Sub(last) != 6*time.Second {
			h.t.Errorf("audit: %+v", ends)
		}
	})
}

func TestADeadlineEndsTheTaskWhateverTheHeartbeats(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, func(r *broker.BeginRequest) { r.Lease, r.Deadline = 6*time.Second, 10*time.Second })
		for range 5 {
			time.Sleep(2 * time.Second)
			if _, err := h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: begun.Task.ID}}); err != nil {
				h.t.Fatal(err)
			}
		}
		if task, _ := h.Task(ctx, workload(report), begun.Task.ID); task.State != broker.Expired || task.Cause != broker.CauseDeadline {
			h.t.Errorf("%s by %s", task.State, task.Cause)
		}
	})
}

// TestP7_AParentTakesItsDescendants: in one write, for look-ups at once.
func TestP7_AParentTakesItsDescendants(t *testing.T) {
	inBubble(t, func(h *harness) {
		chain := []broker.Begun{h.begin(report, withToken)}
		for len(chain) < broker.MaxDepth {
			parent := chain[len(chain)-1].Task.ID
			chain = append(chain, h.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Parent = parent }))
		}
		_, err := h.tryBegin(report, func(r *broker.BeginRequest) { r.Parent = chain[len(chain)-1].Task.ID })
		want(h.t, err, broker.ErrInvalid)
		receipt := h.end(report, chain[0].Task.ID)
		if receipt.Grants != broker.MaxDepth || receipt.SubTasks != broker.MaxDepth-1 {
			h.t.Errorf("receipt %+v", receipt)
		}
		for i, link := range chain {
			if h.live(report, link.Tokens[0].Grant.ID) {
				h.t.Errorf("the grant at depth %d is alive", i+1)
			}
			if i > 0 {
				if task, _ := h.Task(ctx, workload(report), link.Task.ID); task.State != broker.Canceled || task.Cause != broker.CauseParent {
					h.t.Errorf("depth %d: %s by %s", i+1, task.State, task.Cause)
				}
			}
		}
		if entries := h.denied("orders"); len(entries) != 1 {
			h.t.Errorf("%d entries for one tree", len(entries))
		}
		c := claims(h.t, chain[7].Tokens[0].Token)
		if len(c.Task.Path) != broker.MaxDepth || c.Task.Path[0] != string(chain[0].Task.ID) || c.Transaction != c.Task.Path[0] {
			h.t.Errorf("claims %+v", c)
		}
	})
}

func TestAChildStaysWithinItsParent(t *testing.T) {
	inBubble(t, func(h *harness) {
		parent := h.begin(report, func(r *broker.BeginRequest) {
			r.Ceiling = broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}}
		})
		_, err := h.tryBegin(report, func(r *broker.BeginRequest) {
			r.Parent, r.Ceiling.Audiences = parent.Task.ID, broker.Audiences{"files"}
		})
		want(h.t, err, broker.ErrScopeExceeded)
		_, err = h.tryBegin(report, func(r *broker.BeginRequest) {
			r.Parent, r.Ceiling.Scopes = parent.Task.ID, broker.Scopes{"files:write"}
		})
		want(h.t, err, broker.ErrScopeExceeded)
		child := h.begin(report, func(r *broker.BeginRequest) { r.Parent = parent.Task.ID })
		if child.Task.Ceiling.Scopes.String() != "orders:read" || !slices.Equal(child.Task.Ceiling.Audiences, []string{"orders"}) {
			h.t.Errorf("ceiling %+v", child.Task.Ceiling)
		}
		_, err = h.tryBegin(night, func(r *broker.BeginRequest) { r.Parent = parent.Task.ID })
		want(h.t, err, broker.ErrNotFound)
		h.end(report, parent.Task.ID)
		_, err = h.tryBegin(report, func(r *broker.BeginRequest) { r.Parent = parent.Task.ID })
		want(h.t, err, broker.ErrEnded)
	})
}

// TestP12_NoTokenWithoutARecord: the audit record is durable before the token exists, and when it
// cannot be, the task is over before anybody could use it.
func TestP12_NoTokenWithoutARecord(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, withToken)
		issued := h.audit.of(broker.EventGrantIssued)
		if len(issued) != 1 || issued[0].Grant != begun.Tokens[0].Grant.ID || issued[0].Owner != "team-fin" || issued[0].Purpose != "FIN-212" ||
			issued[0].Key == "" || issued[0].Thumbprint != "thumb-report" || issued[0].Address == "" || issued[0].Decision == "" ||
			issued[0].Rule == "" || issued[0].Revision == "" || issued[0].Audience != "orders" || issued[0].Scopes.String() != "orders:read" {
			h.t.Errorf("the record is not whole: %+v", issued)
		}
		for _, e := range h.audit.of(broker.EventGrantIssued) {
			if strings.Contains(fmt.Sprintf("%+v", e), begun.Tokens[0].Token.Secret()) {
				h.t.Error("the token is in the record")
			}
		}
		h.audit.break_(errors.New("disk full"))
		_, err := h.Issue(ctx, workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(h.t, err, broker.ErrAudit)
		_, err = h.tryBegin(report, withToken)
		want(h.t, err, broker.ErrAudit)
		page, err := h.store.List(ctx, broker.Query{})
		if err != nil {
			h.t.Fatal(err)
		}
		for _, task := range page.Tasks {
			if task.ID != begun.Task.ID && (task.State != broker.Canceled || task.Cause != broker.CauseAudit) {
				h.t.Errorf("left behind: %+v", task)
			}
		}
		// Ending is never blocked by audit.
		receipt := h.end(report, begun.Task.ID)
		if !receipt.First || h.live(report, begun.Tokens[0].Grant.ID) {
			h.t.Errorf("the end did not happen: %+v", receipt)
		}
		time.Sleep(3 * time.Second)
		want(h.t, h.Ready(), broker.ErrNotReady)
		h.audit.break_(nil)
		time.Sleep(2 * time.Second)
		found := false
		for _, e := range h.audit.of(broker.EventTaskEnded) {
			found = found || e.ID == receipt.Event
		}
		if !found {
			h.t.Error("the end was never recorded")
		}
		if err := h.Ready(); err != nil {
			h.t.Error(err)
		}
	})
}

func TestIdempotentBegin(t *testing.T) {
	inBubble(t, func(h *harness) {
		with := func(r *broker.BeginRequest) { withToken(r); r.Key = "k1" }
		first := h.begin(report, with)
		again := h.begin(report, with)
		if !again.Replayed || again.Task.ID != first.Task.ID || again.Tokens[0].Grant.ID != first.Tokens[0].Grant.ID {
			h.t.Errorf("got %+v after %+v", again, first)
		}
		if c, d := claims(h.t, first.Tokens[0].Token), claims(h.t, again.Tokens[0].Token); c.ID != d.ID || c.Expiry != d.Expiry {
			h.t.Errorf("another token: %+v and %+v", c, d)
		}
		if _, err := h.Revoke(ctx, broker.Revocation{Grant: first.Tokens[0].Grant.ID, Actor: "ada", Reason: "INC-0"}); err != nil {
			h.t.Fatal(err)
		}
		if third := h.begin(report, with); len(third.Tokens) != 0 {
			h.t.Errorf("a revoked grant was signed again: %+v", third.Tokens)
		}
		_, err := h.tryBegin(report, func(r *broker.BeginRequest) { with(r); r.Purpose = "another" })
		want(h.t, err, broker.ErrMismatch)
		if other := h.begin(night, with); other.Replayed {
			h.t.Error("a key of another workload was replayed")
		}
		h.end(report, first.Task.ID)
		_, err = h.tryBegin(report, with)
		want(h.t, err, broker.ErrEnded)
	})
}

func TestRefusals(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, func(r *broker.BeginRequest) {
			r.Ceiling = broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}}
		})
		_, err := h.tryBegin("nobody", nil)
		want(h.t, err, broker.ErrUnregistered)
		_, err = h.tryBegin(report, func(r *broker.BeginRequest) { r.Ceiling.Scopes = broker.Scopes{"orders:write"} })
		want(h.t, err, broker.ErrDenied)
		issue := func(w string, id broker.TaskID, audience string, scopes ...string) error {
			_, err := h.Issue(ctx, workload(w), id, broker.TokenRequest{Audience: audience, Scopes: scopes})
			return err
		}
		want(h.t, issue(report, begun.Task.ID, "files"), broker.ErrScopeExceeded)
		want(h.t, issue(report, begun.Task.ID, "orders", "orders:write"), broker.ErrScopeExceeded)
		want(h.t, issue(report, begun.Task.ID, ""), broker.ErrInvalid)
		want(h.t, issue(night, begun.Task.ID, "orders"), broker.ErrNotFound)
		want(h.t, issue(report, broker.NewTaskID(0), "orders"), broker.ErrNotFound)
		want(h.t, issue(report, "", "orders"), broker.ErrNotFound)
		_, err = h.End(ctx, workload(night), begun.Task.ID, broker.EndRequest{State: broker.Completed})
		want(h.t, err, broker.ErrNotFound)
		for _, state := range []broker.State{"", broker.Active, broker.Revoked, broker.Lapsed, "done"} {
			_, err = h.End(ctx, workload(report), begun.Task.ID, broker.EndRequest{State: state})
			want(h.t, err, broker.ErrInvalid)
		}
		_, err = h.Task(ctx, workload(night), begun.Task.ID)
		want(h.t, err, broker.ErrNotFound)
		pulses, err := h.Heartbeat(ctx, workload(night), []broker.Beat{{Task: begun.Task.ID}, {Task: "tsk_nonsense"}})
		if err != nil || !errors.Is(pulses[0].Err, broker.ErrNotFound) || !errors.Is(pulses[1].Err, broker.ErrNotFound) {
			h.t.Errorf("got %+v, %v", pulses, err)
		}
		if task, _ := h.Task(ctx, workload(report), begun.Task.ID); task.State != broker.Active {
			h.t.Errorf("a stranger changed it: %+v", task)
		}
		var told *broker.Denied
		if err := issue(report, begun.Task.ID, "files"); !errors.As(err, &told) {
			h.t.Fatalf("got %v", err)
		}
		if !slices.ContainsFunc(h.audit.of(broker.EventDenied), func(e broker.Event) bool { return e.Decision == told.Decision.ID }) {
			h.t.Errorf("decision %s, which the caller was told, is not in the audit log", told.Decision.ID)
		}
		if len(h.audit.of(broker.EventDenied)) < 4 {
			h.t.Errorf("refusals are not recorded: %+v", h.audit.of(broker.EventDenied))
		}
	})
}

// TestBounds has each bound at its limit and one past it.
func TestBounds(t *testing.T) {
	inBubble(t, func(h *harness) {
		for _, c := range []struct {
			name string
			ok   bool
			edit func(*broker.BeginRequest)
		}{
			{"shortest lease", true, func(r *broker.BeginRequest) { r.Lease = broker.MinLease }},
			{"lease too short", false, func(r *broker.BeginRequest) { r.Lease = broker.MinLease - 1 }},
			{"longest lease", true, func(r *broker.BeginRequest) { r.Lease = broker.MaxLease }},
			{"lease too long", false, func(r *broker.BeginRequest) { r.Lease = broker.MaxLease + 1 }},
			{"negative lease", false, func(r *broker.BeginRequest) { r.Lease = -1 }},
			{"nearest deadline", true, func(r *broker.BeginRequest) { r.Deadline = broker.MinDeadline }},
			{"deadline too near", false, func(r *broker.BeginRequest) { r.Deadline = broker.MinDeadline - 1 }},
			{"farthest deadline", true, func(r *broker.BeginRequest) { r.Deadline = broker.MaxDeadline }},
			{"deadline too far", false, func(r *broker.BeginRequest) { r.Deadline = broker.MaxDeadline + 1 }},
			{"longest name", true, func(r *broker.BeginRequest) { r.Name = strings.Repeat("n", broker.MaxName) }},
			{"name too long", false, func(r *broker.BeginRequest) { r.Name = strings.Repeat("n", broker.MaxName+1) }},
			{"no name", false, func(r *broker.BeginRequest) { r.Name = "" }},
			{"blank name", false, func(r *broker.BeginRequest) { r.Name = " \t" }},
			{"longest purpose", true, func(r *broker.BeginRequest) { r.Purpose = strings.Repeat("p", broker.MaxPurpose) }},
			{"purpose too long", false, func(r *broker.BeginRequest) { r.Purpose = strings.Repeat("p", broker.MaxPurpose+1) }},
			{"no purpose", false, func(r *broker.BeginRequest) { r.Purpose = "" }},
			{"purpose that is not UTF-8", false, func(r *broker.BeginRequest) { r.Purpose = "\xff" }},
			{"longest key", true, func(r *broker.BeginRequest) { r.Key = strings.Repeat("k", broker.MaxKey) }},
			{"key too long", false, func(r *broker.BeginRequest) { r.Key = strings.Repeat("k", broker.MaxKey+1) }},
			{"key with a quote", false, func(r *broker.BeginRequest) { r.Key = `a"b` }},
			{"most tokens", true, func(r *broker.BeginRequest) { r.Tokens = forOrders(broker.MaxTokens) }},
			{"too many tokens", false, func(r *broker.BeginRequest) { r.Tokens = forOrders(broker.MaxTokens + 1) }},
			{"shortest life", true, func(r *broker.BeginRequest) { withToken(r); r.Tokens[0].Life = broker.MinTokenLife }},
			{"life too short", false, func(r *broker.BeginRequest) { withToken(r); r.Tokens[0].Life = broker.MinTokenLife - 1 }},
			{"longest life", true, func(r *broker.BeginRequest) { withToken(r); r.Tokens[0].Life = broker.MaxTokenLife }},
			{"life too long", false, func(r *broker.BeginRequest) { withToken(r); r.Tokens[0].Life = broker.MaxTokenLife + 1 }},
			{"negative life", false, func(r *broker.BeginRequest) { withToken(r); r.Tokens[0].Life = -1 }},
		} {
			_, err := h.tryBegin(report, c.edit)
			if c.ok && err != nil || !c.ok && !errors.Is(err, broker.ErrInvalid) {
				h.t.Errorf("%s: %v", c.name, err)
			}
		}
		for n, ok := range map[int]bool{0: false, 1: true, broker.MaxHeartbeat: true, broker.MaxHeartbeat + 1: false} {
			_, err := h.Heartbeat(ctx, workload(report), make([]broker.Beat, n))
			if ok != (err == nil) {
				h.t.Errorf("%d heartbeats: %v", n, err)
			}
		}
	})
}

func forOrders(n int) []broker.TokenRequest {
	out := make([]broker.TokenRequest, n)
	for i := range out {
		out[i].Audience = "orders"
	}
	return out
}

// TestLifeIsTheLeastOfAllCaps: policy, audience, task and SVID.
func TestLifeIsTheLeastOfAllCaps(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, func(r *broker.BeginRequest) { r.Deadline = 20 * time.Second })
		life := func(w broker.Workload, audience string, ask time.Duration) (time.Duration, error) {
			issued, err := h.Issue(ctx, w, begun.Task.ID, broker.TokenRequest{Audience: audience, Life: ask})
			return issued.Life, err
		}
		w := workload(report)
		if got, err := life(w, "files", time.Minute); err != nil || got != 10*time.Second {
			h.t.Errorf("audience's cap: %s, %v", got, err)
		}
		if got, err := life(w, "orders", time.Minute); err != nil || got != 20*time.Second {
			h.t.Errorf("task's deadline: %s, %v", got, err)
		}
		w.NotAfter = time.Now().Add(7*time.Second + 500*time.Millisecond)
		if got, err := life(w, "orders", time.Minute); err != nil || got != 7*time.Second {
			h.t.Errorf("SVID's end: %s, %v", got, err)
		}
		if got, err := life(w, "mesh", 15*time.Second); err != nil || got != 7*time.Second {
			h.t.Errorf("SVID's end, of a token that is not bound to the certificate: %s, %v", got, err)
		}
		w.NotAfter = time.Now().Add(1900 * time.Millisecond)
		_, err := life(w, "orders", time.Minute)
		want(h.t, err, broker.ErrTooShort)
		time.Sleep(19 * time.Second)
		_, err = life(workload(report), "orders", time.Minute)
		want(h.t, err, broker.ErrTooShort)
	})
}

func TestBindings(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, func(r *broker.BeginRequest) {
			r.Tokens = []broker.TokenRequest{{Audience: "orders"}, {Audience: "mesh"}}
		})
		if c := claims(h.t, begun.Tokens[0].Token); c.Confirmation == nil {
			h.t.Error("a token of an audience that binds to the certificate has no cnf")
		}
		if c := claims(h.t, begun.Tokens[1].Token); c.Confirmation != nil {
			h.t.Error("a token of an audience that binds to the identity has a cnf")
		}
	})
}

func TestQuotas(t *testing.T) {
	inBubble(t, func(h *harness) {
		a := h.begin(small, withToken)
		h.begin(small, withToken)
		_, err := h.tryBegin(small, nil)
		want(h.t, err, broker.ErrQuota)
		h.issue(small, a.Task.ID)
		_, err = h.Issue(ctx, workload(small), a.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(h.t, err, broker.ErrQuota)
		h.end(small, a.Task.ID)
		h.begin(small, nil)
		// Nobody else is touched.
		h.begin(report, withToken)
	})
}

func TestRevoke(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, withToken)
		other := h.issue(report, begun.Task.ID)
		receipt, err := h.Revoke(ctx, broker.Revocation{Grant: other.Grant.ID, Actor: "ada", Reason: "INC-1"})
		if err != nil || !receipt.First {
			h.t.Fatalf("got %+v, %v", receipt, err)
		}
		if h.live(report, other.Grant.ID) || !h.live(report, begun.Tokens[0].Grant.ID) {
			h.t.Error("the wrong grant is dead")
		}
		if _, err := h.Revoke(ctx, broker.Revocation{Task: begun.Task.ID, Actor: "ada", Reason: "INC-1"}); err != nil {
			h.t.Fatal(err)
		}
		if task, _ := h.Task(ctx, workload(report), begun.Task.ID); task.State != broker.Revoked || task.Cause != broker.CauseOperator {
			h.t.Errorf("%s by %s", task.State, task.Cause)
		}
		if r := h.end(report, begun.Task.ID); r.State != broker.Revoked || r.First || r.Reason != "INC-1" {
			h.t.Errorf("an end after the revocation: %+v", r)
		}
		for _, bad := range []broker.Revocation{
			{Actor: "ada", Reason: "r"},
			{Task: begun.Task.ID, All: true, Actor: "ada", Reason: "r"},
			{Task: begun.Task.ID, Actor: "ada"},
			{Task: begun.Task.ID, Reason: "r"},
			{Selector: broker.Selector{Subject: "prod/*"}, Actor: "ada", Reason: "r"},
		} {
			_, err := h.Revoke(ctx, bad)
			want(h.t, err, broker.ErrInvalid)
		}
		_, err = h.Revoke(ctx, broker.Revocation{Task: broker.NewTaskID(0), Actor: "ada", Reason: "r"})
		want(h.t, err, broker.ErrNotFound)
	})
}

// TestASelectorKillsWhatCameBeforeIt and nothing that came after, without comparing clocks.
func TestASelectorKillsWhatCameBeforeIt(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.begin(night, withToken)
		spared := h.begin(report, withToken)
		if _, err := h.Revoke(ctx, broker.Revocation{
			Selector: broker.Selector{Subject: "spiffe://prod/batch/*", Audience: "orders"}, Actor: "ada", Reason: "INC-2",
		}); err != nil {
			h.t.Fatal(err)
		}
		// In the same instant by the clock.
		after := h.issue(night, before.Task.ID)
		if h.live(night, before.Tokens[0].Grant.ID) {
			h.t.Error("a grant from before the selector is alive")
		}
		if !h.live(night, after.Grant.ID) || !h.live(report, spared.Tokens[0].Grant.ID) {
			h.t.Error("a grant from after the selector, or of somebody else, is dead")
		}
		if c := claims(h.t, after.Token); c.Epoch[1] == 0 {
			h.t.Errorf("the token does not carry the number: %+v", c.Epoch)
		}
		if _, err := h.Revoke(ctx, broker.Revocation{All: true, Actor: "ada", Reason: "INC-3"}); err != nil {
			h.t.Fatal(err)
		}
		if h.live(night, after.Grant.ID) || h.live(report, spared.Tokens[0].Grant.ID) {
			h.t.Error("alive after everything was revoked")
		}
	})
}

func TestLocks(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(night, nil)
		lock, err := h.Lock(ctx, broker.Lock{
			Selector: broker.Selector{Subject: "spiffe://prod/batch/night"}, Actor: "ada", Reason: "INC-4", Expires: time.Now().Add(time.Hour),
		})
		if err != nil {
			h.t.Fatal(err)
		}
		_, err = h.tryBegin(night, nil)
		want(h.t, err, broker.ErrQuarantined)
		_, err = h.Issue(ctx, workload(night), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(h.t, err, broker.ErrQuarantined)
		h.begin(report, withToken)
		if self, err := h.Whoami(ctx, workload(night)); err != nil || len(self.Locks) != 1 || self.Locks[0].Reason != "INC-4" {
			h.t.Errorf("whoami: %+v, %v", self, err)
		}
		if err := h.Lift(ctx, broker.Lifting{Lock: lock, Actor: "ada", Reason: "over"}); err != nil {
			h.t.Fatal(err)
		}
		synctest.Wait()
		h.begin(night, withToken)
		if err := h.Lift(ctx, broker.Lifting{Lock: lock, Actor: "ada", Reason: "again"}); err != nil || len(h.audit.of(broker.EventLifted)) != 1 {
			h.t.Errorf("the second lift: %v, and %d in the audit log", err, len(h.audit.of(broker.EventLifted)))
		}
		want(h.t, h.Lift(ctx, broker.Lifting{Lock: broker.NewLockID(), Actor: "ada", Reason: "unknown"}), broker.ErrNotFound)

		if _, err := h.Lock(ctx, broker.Lock{
			Selector: broker.Selector{Audience: "orders"}, Actor: "ada", Reason: "INC-5", Expires: time.Now().Add(time.Minute),
		}); err != nil {
			h.t.Fatal(err)
		}
		_, err = h.tryBegin(report, withToken)
		want(h.t, err, broker.ErrQuarantined)
		h.begin(report, nil) // the lock is on an audience, not on tasks
		time.Sleep(time.Minute + time.Second)
		h.begin(report, withToken)

		for _, bad := range []broker.Lock{
			{Actor: "ada", Reason: "r", Expires: time.Now().Add(time.Hour)},
			{Selector: broker.Selector{Audience: "orders"}, Actor: "ada", Reason: "r"},
			{Selector: broker.Selector{Audience: "orders"}, Actor: "ada", Reason: "r", Expires: time.Now().Add(broker.MaxLock + time.Second)},
			{Selector: broker.Selector{Audience: "orders"}, Reason: "r", Expires: time.Now().Add(time.Hour)},
		} {
			_, err := h.Lock(ctx, bad)
			want(h.t, err, broker.ErrInvalid)
		}
	})
}

// lateStore delivers the feed late, as to a replica that has trouble with its connection.
type lateStore struct {
	broker.Store
	delay time.Duration
}

func (s lateStore) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	first := true
	return s.Store.Watch(ctx, from, func(u broker.Update) error {
		if !first {
			time.Sleep(s.delay)
		}
		first = false
		return emit(u)
	})
}

// TestNoBeginSlipsPastALock: a replica that has not heard of a lock asks the store, is told that it
// is behind, and refuses once it has caught up.
func TestNoBeginSlipsPastALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		quick := newHarness(t, store, nil)
		late := newHarness(t, lateStore{store, 300 * time.Millisecond}, nil)
		late.begin(report, nil)
		if _, err := quick.Lock(ctx, broker.Lock{
			Selector: broker.Selector{Subject: "spiffe://prod/report"}, Actor: "ada", Reason: "INC-6", Expires: time.Now().Add(time.Hour),
		}); err != nil {
			t.Fatal(err)
		}
		_, err = late.tryBegin(report, withToken)
		want(t, err, broker.ErrQuarantined)
	})
}

// failingMinter has no key.
type failingMinter struct{}

func (failingMinter) Draft(context.Context, broker.Task, broker.Grant) (broker.Draft, error) {
	return nil, broker.ErrSigning
}

func (failingMinter) Retire(string) error { return broker.ErrNotFound }

func (failingMinter) Deny(string) {}

func (failingMinter) Rotate() (string, error) { return "", broker.ErrSigning }

func TestWhatCannotBeSignedIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.Minter = failingMinter{} })
		_, err = h.tryBegin(report, withToken)
		want(t, err, broker.ErrSigning)
		page, _ := store.List(ctx, broker.Query{})
		if len(page.Tasks) != 1 || page.Tasks[0].State != broker.Canceled || page.Tasks[0].Cause != broker.CauseSigning {
			t.Errorf("left behind: %+v", page.Tasks)
		}
	})
}

// brokenPolicy fails, or says yes to too much.
type brokenPolicy struct{ err error }

func (p brokenPolicy) Decide(context.Context, broker.Ask) (broker.Decision, error) {
	return broker.Decision{
		Allowed: true, Rule: "everything", Life: 24 * time.Hour, Scopes: broker.Scopes{"orders:read", "orders:write", "root"},
		Ceiling: broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}},
	}, p.err
}

func TestAPolicyErrorIsADenialAndAYesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		failing := newHarness(t, store, func(c *broker.Config) { c.Policy = brokenPolicy{errors.New("no file")} })
		_, err = failing.tryBegin(report, nil)
		want(t, err, broker.ErrDenied)
		lavish := newHarness(t, store, func(c *broker.Config) { c.Policy = brokenPolicy{} })
		begun := lavish.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Tokens[0].Life = broker.MaxTokenLife })
		issued := begun.Tokens[0]
		if issued.Grant.Scopes.String() != "orders:read" || issued.Life > broker.MaxTokenLife {
			t.Errorf("got %v for %s", issued.Grant.Scopes, issued.Life)
		}
		_, err = lavish.tryBegin(report, func(r *broker.BeginRequest) { r.Tokens = []broker.TokenRequest{{Audience: "files"}} })
		want(t, err, broker.ErrScopeExceeded)
	})
}

func TestNothingIsIssuedBeforeTheFeedWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		running := newHarness(t, store, nil)
		idle, err := broker.New(running.Config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = idle.Begin(ctx, workload(report), broker.BeginRequest{Name: "n", Purpose: "p"})
		want(t, err, broker.ErrNotReady)
		want(t, idle.Ready(), broker.ErrNotReady)
		if err := running.Ready(); err != nil {
			t.Error(err)
		}
	})
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := broker.New(broker.Config{}); err == nil || !strings.Contains(err.Error(), "required") {
		t.Error(err)
	}
}

func TestATokenPrintsItselfRedacted(t *testing.T) {
	token := broker.NewToken("eyJhbGciOi.secret.signature")
	text, err := json.Marshal(map[string]any{"token": token, "pointer": &token})
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		string(text), fmt.Sprint(token), fmt.Sprintf("%v %+v %#v %s %q", token, token, token, token, token),
		fmt.Sprintf("%+v", broker.Issued{Token: token}), fmt.Sprintf("%#v", &broker.Issued{Token: token}), token.LogValue().String(),
	} {
		if strings.Contains(out, "secret") || strings.Contains(out, "eyJ") {
			t.Errorf("printed: %s", out)
		}
	}
}
