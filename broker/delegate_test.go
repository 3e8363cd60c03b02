package broker_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func (h *harness) delegate(w string, id broker.TaskID, to string) broker.Delegated {
	h.t.Helper()
	d, err := h.tryDelegate(w, id, broker.Delegation{To: workload(to).ID})
	if err != nil {
		h.t.Fatalf("delegate: %v", err)
	}
	return d
}

func (h *harness) tryDelegate(w string, id broker.TaskID, d broker.Delegation) (broker.Delegated, error) {
	if d.Purpose == "" {
		d.Purpose = "FIN-213"
	}
	return h.Delegate(ctx, workload(w), id, d)
}

func (h *harness) join(w string, d broker.Delegated, edit func(*broker.BeginRequest)) broker.Begun {
	h.t.Helper()
	begun, err := h.tryJoin(w, d.Handle, edit)
	if err != nil {
		h.t.Fatalf("join: %v", err)
	}
	return begun
}

func (h *harness) tryJoin(w string, handle broker.Handle, edit func(*broker.BeginRequest)) (broker.Begun, error) {
	req := broker.BeginRequest{Name: "sub-export", Purpose: "FIN-213"}
	if edit != nil {
		edit(&req)
	}
	return h.Join(ctx, workload(w), handle, req)
}

// through delegates a task of report to night, and that one's to small, each with a token.
func (h *harness) through() (a, b, c broker.Begun) {
	h.t.Helper()
	a = h.begin(report, withToken)
	b = h.join(night, h.delegate(report, a.Task.ID, night), withToken)
	c = h.join(small, h.delegate(night, b.Task.ID, small), withToken)
	return a, b, c
}

func subjects(ids ...string) (out []spiffeid.ID) {
	for _, id := range ids {
		out = append(out, workload(id).ID)
	}
	return out
}

// TestJoin: what has joined stands below what was delegated, acts in the names of all above it, and is recorded so.
func TestJoin(t *testing.T) {
	inBubble(t, func(h *harness) {
		a := h.begin(report, withToken)
		d := h.delegate(report, a.Task.ID, night)
		b := h.join(night, d, withToken)
		second := h.delegate(night, b.Task.ID, small)
		c := h.join(small, second, withToken)
		below := h.begin(small, func(r *broker.BeginRequest) { withToken(r); r.Parent = c.Task.ID })
		for _, test := range []struct {
			task broker.Task
			path []broker.TaskID
			of   []string
		}{
			{a.Task, []broker.TaskID{a.Task.ID}, nil},
			{b.Task, []broker.TaskID{a.Task.ID, b.Task.ID}, []string{report}},
			{c.Task, []broker.TaskID{a.Task.ID, b.Task.ID, c.Task.ID}, []string{report, night}},
			{below.Task, []broker.TaskID{a.Task.ID, b.Task.ID, c.Task.ID, below.Task.ID}, []string{report, night}},
		} {
			if !equal(test.task.Path, test.path) || !equal(test.task.Delegators, subjects(test.of...)) || test.task.Holder != 1 || test.task.ID.Shard() != a.Task.ID.Shard() {
				h.t.Errorf("got %+v; want the path %v and the delegators %v", test.task, test.path, test.of)
			}
		}
		if c := b.Task.Ceiling; c.Scopes.String() != "orders:read" || !equal(c.Audiences, broker.Audiences{"orders"}) {
			h.t.Errorf("what both may have is %+v", c)
		}
		if b.EndKey == a.EndKey || b.EndKey == (broker.EndKey{}) {
			h.t.Error("it has no end key of its own")
		}
		told := h.audit.of(broker.EventTaskDelegated)
		if len(told) != 2 || told[0].Delegation != d.ID || told[0].To != "spiffe://prod/batch/night" || told[0].Task != a.Task.ID || told[0].Workload != "spiffe://prod/report" ||
			told[0].Owner != "team-fin" || told[0].Scopes.String() != "orders:read" || !equal(told[0].Audiences, broker.Audiences{"orders"}) ||
			told[0].Purpose != "FIN-213" || !told[0].Expires.Equal(d.Expires) || told[0].Decision == "" || !told[0].Allowed || told[0].Rule != "ceiling/within" {
			h.t.Errorf("recorded: %+v", told)
		}
		if !equal(told[1].Delegators, []string{"spiffe://prod/report"}) {
			h.t.Errorf("of the second: %+v", told[1])
		}
		begun, issued := h.audit.of(broker.EventTaskBegun), h.audit.of(broker.EventGrantIssued)
		if len(begun) != 4 || begun[1].Delegation != d.ID || begun[2].Delegation != second.ID || begun[3].Delegation != "" ||
			!equal(begun[2].Delegators, []string{"spiffe://prod/report", "spiffe://prod/batch/night"}) || begun[2].Actor != "spiffe://prod/small" {
			h.t.Errorf("recorded: %+v", begun)
		}
		if len(issued) != 4 || !equal(issued[3].Delegators, begun[2].Delegators) {
			h.t.Errorf("recorded: %+v", issued)
		}
	})
}

func equal[S ~[]E, E comparable](a, b S) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestWhatHasJoinedDiesWithWhatIsAbove, whoever ends that and however; and not with what is below.
func TestWhatHasJoinedDiesWithWhatIsAbove(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(h *harness, a, b, c broker.Begun)
		dead [3]bool
	}{
		"the first ends":     {func(h *harness, a, _, _ broker.Begun) { h.end(report, a.Task.ID) }, [3]bool{true, true, true}},
		"the second ends":    {func(h *harness, _, b, _ broker.Begun) { h.end(night, b.Task.ID) }, [3]bool{false, true, true}},
		"the third ends":     {func(h *harness, _, _, c broker.Begun) { h.end(small, c.Task.ID) }, [3]bool{false, false, true}},
		"the first's grant":  {func(h *harness, a, _, _ broker.Begun) { h.revoke(broker.Revocation{Grant: a.Tokens[0].Grant.ID}) }, [3]bool{true, false, false}},
		"the first's name":   {func(h *harness, _, _, _ broker.Begun) { h.deny("spiffe://prod/report") }, [3]bool{true, true, true}},
		"the second's name":  {func(h *harness, _, _, _ broker.Begun) { h.deny("spiffe://prod/batch/*") }, [3]bool{false, true, true}},
		"the third's name":   {func(h *harness, _, _, _ broker.Begun) { h.deny("spiffe://prod/small") }, [3]bool{false, false, true}},
		"somebody else's":    {func(h *harness, _, _, _ broker.Begun) { h.deny("spiffe://prod/batch") }, [3]bool{}},
		"the domain's":       {func(h *harness, _, _, _ broker.Begun) { h.deny("spiffe://prod/*") }, [3]bool{true, true, true}},
		"the first lapses":   {func(h *harness, _, b, c broker.Begun) { h.keep(31*time.Second, b, c) }, [3]bool{true, true, true}},
		"a replica's own":    {func(h *harness, a, _, _ broker.Begun) { h.endAway(a) }, [3]bool{true, true, true}},
		"the domain is gone": {func(h *harness, _, _, _ broker.Begun) { h.withdraw() }, [3]bool{true, true, true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t, newFaulty(t), nil)
				a, b, c := h.through()
				test.end(h, a, b, c)
				for i, begun := range []broker.Begun{a, b, c} {
					whose := []string{report, night, small}[i]
					if dead := !h.liveOrGone(whose, begun.Tokens[0].Grant.ID); dead != test.dead[i] {
						t.Errorf("the token of %s is dead: %t; want %t", whose, dead, test.dead[i])
					}
				}
			})
		})
	}
}

func (h *harness) revoke(r broker.Revocation) {
	h.t.Helper()
	r.Actor, r.Reason = "alice", "a test"
	if _, err := h.Revoke(ctx, r); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) deny(subject string) {
	h.revoke(broker.Revocation{Selector: broker.Selector{Subject: subject}})
}

// keep beats for two tasks of night and small, and not for report's.
func (h *harness) keep(d time.Duration, b, c broker.Begun) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
		for w, id := range map[string]broker.TaskID{night: b.Task.ID, small: c.Task.ID} {
			if _, err := h.Heartbeat(ctx, workload(w), []broker.Beat{{Task: id}}); err != nil {
				h.t.Fatal(err)
			}
		}
	}
}

// endAway ends a task while the store does not answer to ends.
func (h *harness) endAway(a broker.Begun) {
	h.store.(*faultyStore).ends.Store(away)
	if r, err := h.tryEnd(report, a.Task.ID, a.EndKey); err != nil || r.Durable {
		h.t.Errorf("%+v, %v", r, err)
	}
}

func (h *harness) withdraw() {
	if _, err := h.Withdraw(ctx, spiffeid.RequireTrustDomainFromString("prod")); err != nil {
		h.t.Fatal(err)
	}
}

// liveOrGone is live for a grant that may have been forgotten.
func (h *harness) liveOrGone(w string, id broker.GrantID) bool {
	status, err := h.Grant(ctx, workload(w), id)
	if err != nil && !errors.Is(err, broker.ErrNotFound) {
		h.t.Fatal(err)
	}
	return status.Live
}

// TestALockOfOneIsALockOfAllInItsName: no token, no task below, no delegation and no joining, while it stands.
func TestALockOfOneIsALockOfAllInItsName(t *testing.T) {
	for _, locked := range []string{"spiffe://prod/report", "spiffe://prod/batch/*", "spiffe://prod/small"} {
		t.Run(locked, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, err := memory.New(memory.Config{Shards: 4})
				if err != nil {
					t.Fatal(err)
				}
				h := newHarness(t, store, nil)
				_, b, c := h.through()
				open := h.delegate(night, b.Task.ID, small)
				lock, err := h.Lock(ctx, broker.Lock{Selector: broker.Selector{Subject: locked}, Reason: "a test", Actor: "alice", Expires: time.Now().Add(time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				all := func(want error) {
					t.Helper()
					_, issue := h.Issue(ctx, workload(small), c.Task.ID, broker.TokenRequest{Audience: "orders"})
					below, child := h.tryBegin(small, func(r *broker.BeginRequest) { r.Parent = c.Task.ID })
					if child == nil {
						h.end(small, below.Task.ID) // or there are more tasks than small may have
					}
					_, delegate := h.tryDelegate(small, c.Task.ID, broker.Delegation{To: workload(night).ID})
					_, to := h.tryDelegate(night, b.Task.ID, broker.Delegation{To: workload(small).ID})
					_, join := h.tryJoin(small, open.Handle, nil)
					for name, err := range map[string]error{"issue": issue, "child": child, "delegate": delegate, "delegate to it": to, "join": join} {
						if !errors.Is(err, want) {
							t.Errorf("%s: %v; want %v", name, err, want)
						}
					}
				}
				all(broker.ErrQuarantined)
				if !h.live(small, c.Tokens[0].Grant.ID) {
					t.Error("a lock has revoked something")
				}
				if err := h.Lift(ctx, broker.Lifting{Lock: lock, Actor: "alice", Reason: "a test"}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(broker.WatchInterval) // a replica may refuse as long as it has not heard of it
				all(nil)
			})
		})
	}
}

// TestDelegationsThatAreNone: what is wrong is said, and nothing is recorded as delegated.
func TestDelegationsThatAreNone(t *testing.T) {
	inBubble(t, func(h *harness) {
		a := h.begin(report, nil)
		foreign := h.begin(night, nil)
		over := h.begin(report, nil)
		h.end(report, over.Task.ID)
		deep := a.Task.ID
		for range broker.MaxDepth - 1 {
			deep = h.begin(report, func(r *broker.BeginRequest) { r.Parent = deep }).Task.ID
		}
		to := workload(night).ID
		domain, err := spiffeid.FromString("spiffe://prod")
		if err != nil {
			h.t.Fatal(err)
		}
		for name, test := range map[string]struct {
			task  broker.TaskID
			d     broker.Delegation
			want  error
			field string // of an ErrInvalid
		}{
			"somebody else's task":  {foreign.Task.ID, broker.Delegation{To: to}, broker.ErrNotFound, ""},
			"no task":               {broker.NewTaskID(0), broker.Delegation{To: to}, broker.ErrNotFound, ""},
			"one that has ended":    {over.Task.ID, broker.Delegation{To: to}, broker.ErrEnded, ""},
			"the deepest":           {deep, broker.Delegation{To: to}, broker.ErrInvalid, "task"},
			"to nobody":             {a.Task.ID, broker.Delegation{}, broker.ErrInvalid, "to"},
			"to itself":             {a.Task.ID, broker.Delegation{To: workload(report).ID}, broker.ErrInvalid, "to"},
			"to a trust domain":     {a.Task.ID, broker.Delegation{To: domain}, broker.ErrInvalid, "to"},
			"to too long a name":    {a.Task.ID, broker.Delegation{To: workload(strings.Repeat("x", 2048)).ID}, broker.ErrInvalid, "to"},
			"to a stranger":         {a.Task.ID, broker.Delegation{To: workload("stranger").ID}, broker.ErrDenied, ""},
			"no purpose":            {a.Task.ID, broker.Delegation{To: to, Purpose: " "}, broker.ErrInvalid, "purpose"},
			"too long a purpose":    {a.Task.ID, broker.Delegation{To: to, Purpose: strings.Repeat("x", broker.MaxPurpose+1)}, broker.ErrInvalid, "purpose"},
			"half a second":         {a.Task.ID, broker.Delegation{To: to, Life: broker.MinDelegation / 2}, broker.ErrInvalid, "expires_in"},
			"more than a day":       {a.Task.ID, broker.Delegation{To: to, Life: broker.MaxDelegation + time.Second}, broker.ErrInvalid, "expires_in"},
			"an unknown audience":   {a.Task.ID, broker.Delegation{To: to, Ceiling: broker.Ceiling{Audiences: broker.Audiences{"payroll"}}}, broker.ErrScopeExceeded, ""},
			"a scope beyond":        {a.Task.ID, broker.Delegation{To: to, Ceiling: broker.Ceiling{Scopes: broker.Scopes{"orders:write"}}}, broker.ErrScopeExceeded, ""},
			"a detail beyond":       {a.Task.ID, broker.Delegation{To: to, Ceiling: broker.Ceiling{Details: broker.Details{`{"type":"payment"}`}}}, broker.ErrScopeExceeded, ""},
			"what it may not have":  {a.Task.ID, broker.Delegation{To: to, Ceiling: broker.Ceiling{Audiences: broker.Audiences{"files"}}}, broker.ErrDenied, ""},
			"a scope it may not":    {a.Task.ID, broker.Delegation{To: to, Ceiling: broker.Ceiling{Scopes: broker.Scopes{"files:write"}}}, broker.ErrDenied, ""},
			"of somebody else's ID": {broker.TaskID("tsk_99" + string(a.Task.ID[6:])), broker.Delegation{To: to}, broker.ErrNotFound, ""},
		} {
			_, err := h.tryDelegate(report, test.task, test.d)
			bad := (*broker.Invalid)(nil)
			if errors.As(err, &bad); !errors.Is(err, test.want) || test.field != "" && bad.Field != test.field {
				h.t.Errorf("%s: %v; want %v of %q", name, err, test.want, test.field)
			}
			if denied := (*broker.Denied)(nil); errors.As(err, &denied) && (len(denied.Decision.Missing) == 0 || denied.Decision.ID == "") {
				h.t.Errorf("%s: the refusal does not explain itself: %+v", name, denied.Decision)
			}
		}
		if made := h.audit.of(broker.EventTaskDelegated); len(made) != 0 {
			h.t.Errorf("recorded: %+v", made)
		}
		if refused := h.audit.of(broker.EventDenied); len(refused) < 6 {
			h.t.Errorf("%d refusals are recorded", len(refused))
		}
		for _, life := range []time.Duration{broker.MinDelegation, 0, broker.MaxDelegation} {
			d, err := h.tryDelegate(report, a.Task.ID, broker.Delegation{To: to, Life: life})
			if life == 0 {
				life = broker.DefaultDelegation
			}
			want := time.Now().Add(life)
			if want.After(a.Task.Deadline) {
				want = a.Task.Deadline
			}
			if err != nil || !d.Expires.Equal(want.Truncate(time.Millisecond)) {
				h.t.Errorf("for %s: until %s, %v; want %s", life, d.Expires, err, want)
			}
		}
	})
}

// TestHandlesThatAreNotGood: the wrong workload, twice, too late, of what is over, of another broker.
func TestHandlesThatAreNotGood(t *testing.T) {
	inBubble(t, func(h *harness) {
		stranger := newHarness(h.t, h.store, nil) // with another secret
		a := h.begin(report, func(r *broker.BeginRequest) { r.Lease = broker.MaxLease })
		d := h.delegate(report, a.Task.ID, night)
		for _, thief := range []string{small, report, "nobody"} {
			_, err := h.tryJoin(thief, d.Handle, nil)
			if not := (*broker.NotDelegate)(nil); !errors.As(err, &not) || not.Delegation != d.ID || not.To != workload(night).ID {
				h.t.Errorf("stolen by %s: %v", thief, err)
			}
		}
		stolen := h.audit.of(broker.EventDenied)
		if len(stolen) != 3 || stolen[0].Workload != "spiffe://prod/small" || stolen[0].Rule != "delegation/not-delegate" || stolen[0].Delegation != d.ID || stolen[0].To != "spiffe://prod/batch/night" {
			h.t.Errorf("recorded: %+v", stolen)
		}
		_, err := stranger.tryJoin(night, d.Handle, nil)
		want(h.t, err, broker.ErrInvalid)
		_, err = h.tryJoin(night, broker.Handle{}, nil)
		want(h.t, err, broker.ErrInvalid)
		h.join(night, d, nil)
		_, err = h.tryJoin(night, d.Handle, nil)
		want(h.t, err, broker.ErrUsed)
		if refused := h.audit.of(broker.EventDenied); refused[len(refused)-1].Rule != "delegation/used" || refused[len(refused)-1].Delegation != d.ID {
			h.t.Errorf("recorded: %+v", refused)
		}
		late, err := h.tryDelegate(report, a.Task.ID, broker.Delegation{To: workload(night).ID, Life: 2 * time.Second})
		if err != nil {
			h.t.Fatal(err)
		}
		last, err := h.tryDelegate(report, a.Task.ID, broker.Delegation{To: workload(night).ID, Life: 2 * time.Second})
		if err != nil {
			h.t.Fatal(err)
		}
		time.Sleep(time.Until(late.Expires) - time.Millisecond)
		h.join(night, last, nil)
		time.Sleep(time.Millisecond)
		_, err = h.tryJoin(night, late.Handle, nil)
		if expired := (*broker.HandleExpired)(nil); !errors.As(err, &expired) || !expired.At.Equal(late.Expires) {
			h.t.Errorf("too late: %v", err)
		}
		open := h.delegate(report, a.Task.ID, night)
		h.end(report, a.Task.ID)
		_, err = h.tryJoin(night, open.Handle, nil)
		if over := (*broker.Ended)(nil); !errors.As(err, &over) || over.State != broker.Completed || over.Cause != broker.CauseCaller || over.Task != a.Task.ID {
			h.t.Errorf("of a task that has ended: %v", err)
		}
		time.Sleep(2 * broker.Margin) // the store has forgotten it
		_, err = h.tryJoin(night, open.Handle, nil)
		want(h.t, err, broker.ErrNotFound)
	})
}

// TestNobodyJoinsWithMore than was delegated, than the task has, or than it may have itself.
func TestNobodyJoinsWithMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.Registry = wide(t, "") })
		a := h.begin("chief", func(r *broker.BeginRequest) {
			r.Ceiling = broker.Ceiling{Audiences: broker.Audiences{"files", "orders"}, Scopes: broker.Scopes{"files:write", "orders:read", "orders:write"},
				Details: broker.Details{`{"type":"customer"}`, `{"type":"payment"}`}}
		})
		delegated := func(c broker.Ceiling) broker.Delegated {
			t.Helper()
			d, err := h.tryDelegate("chief", a.Task.ID, broker.Delegation{To: workload("clerk").ID, Ceiling: c})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		narrow := delegated(broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}, Details: broker.Details{`{"type":"payment"}`}})
		for name, test := range map[string]struct {
			ask  broker.Ceiling
			want error
		}{
			"an audience that was not delegated": {broker.Ceiling{Audiences: broker.Audiences{"files"}}, broker.ErrScopeExceeded},
			"a scope that was not delegated":     {broker.Ceiling{Scopes: broker.Scopes{"orders:write"}}, broker.ErrScopeExceeded},
			"a scope of the joiner's own":        {broker.Ceiling{Scopes: broker.Scopes{"orders:admin"}}, broker.ErrScopeExceeded},
			"a detail that was not delegated":    {broker.Ceiling{Details: broker.Details{`{"type":"customer"}`}}, broker.ErrScopeExceeded},
		} {
			_, err := h.tryJoin("clerk", narrow.Handle, func(r *broker.BeginRequest) { r.Ceiling = test.ask })
			want(t, err, test.want)
			if denied := (*broker.Denied)(nil); !errors.As(err, &denied) || len(denied.Decision.Missing) == 0 || !strings.Contains(err.Error(), "delegation") {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err = h.tryJoin("clerk", narrow.Handle, func(r *broker.BeginRequest) {
			r.Tokens = []broker.TokenRequest{{Audience: "orders", Scopes: broker.Scopes{"orders:write"}}}
		})
		want(t, err, broker.ErrScopeExceeded)
		b := h.join("clerk", narrow, func(r *broker.BeginRequest) { r.Ceiling.Details = broker.Details{`{"type":"payment"}`} })
		if c := b.Task.Ceiling; c.Scopes.String() != "orders:read" || len(c.Details) != 1 {
			t.Errorf("it has %+v", c)
		}
		_, err = h.Issue(ctx, workload("clerk"), b.Task.ID, broker.TokenRequest{Audience: "files"})
		want(t, err, broker.ErrScopeExceeded)

		// What is left open is what both may have.
		b = h.join("clerk", delegated(broker.Ceiling{}), nil)
		if c := b.Task.Ceiling; c.Scopes.String() != "orders:read orders:write" || !equal(c.Audiences, broker.Audiences{"orders"}) || len(c.Details) != 0 {
			t.Errorf("it has %+v", c)
		}
	})
}

// wide is an inventory with a chief and a clerk, of whom each may have what the other may not; edit replaces the
// scopes that the chief may have at orders.
func wide(t *testing.T, chief string) *registry.Registry {
	t.Helper()
	if chief == "" {
		chief = `"orders:read", "orders:write"`
	}
	text := strings.Replace(inventory, `["orders:read", "orders:write"]`, `["orders:admin", "orders:read", "orders:write"]`, 1) +
		`  - {id: spiffe://prod/chief, owner: team-fin, purpose: chiefs, ceiling: {orders: [` + chief + `], files: ["files:write"]}}
  - {id: spiffe://prod/clerk, owner: team-desk, purpose: clerks, ceiling: {orders: ["orders:admin", "orders:read", "orders:write"]}}
`
	known, err := registry.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// TestADelegatorsRegistrationCounts for every token in its name, also after it has changed.
func TestADelegatorsRegistrationCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		secret := func(c *broker.Config) { c.EndKeySecret = []byte(strings.Repeat("s", broker.EndKeySecretSize)) }
		h := newHarness(t, store, func(c *broker.Config) { secret(c); c.Registry = wide(t, "") })
		a := h.begin("chief", nil)
		open, err := h.tryDelegate("chief", a.Task.ID, broker.Delegation{To: workload("clerk").ID})
		if err != nil {
			t.Fatal(err)
		}
		d, err := h.tryDelegate("chief", a.Task.ID, broker.Delegation{To: workload("clerk").ID})
		if err != nil {
			t.Fatal(err)
		}
		b := h.join("clerk", d, nil)
		narrowed := newHarness(t, store, func(c *broker.Config) { secret(c); c.Registry = wide(t, `"orders:read"`) })
		gone := newHarness(t, store, func(c *broker.Config) {
			secret(c)
			c.Registry = without{wide(t, ""), workload("chief").ID}
		})
		issue := func(h *harness, scopes ...string) (broker.Issued, error) {
			return h.Issue(ctx, workload("clerk"), b.Task.ID, broker.TokenRequest{Audience: "orders", Scopes: scopes})
		}
		if got, err := issue(h); err != nil || got.Grant.Scopes.String() != "orders:read orders:write" {
			t.Errorf("%+v, %v", got.Grant, err)
		}
		if got, err := issue(narrowed); err != nil || got.Grant.Scopes.String() != "orders:read" {
			t.Errorf("narrowed: %+v, %v", got.Grant, err)
		}
		for name, err := range map[string]error{
			"a scope less": second(issue(narrowed, "orders:write")), "none": second(issue(gone)),
			"to join with a scope less": second(narrowed.tryJoin("clerk", open.Handle, func(r *broker.BeginRequest) { r.Ceiling.Scopes = broker.Scopes{"orders:write"} })),
			"to join with none":         second(gone.tryJoin("clerk", open.Handle, nil)),
		} {
			if denied := (*broker.Denied)(nil); !errors.As(err, &denied) || denied.Reason != broker.ErrDenied || !strings.Contains(denied.Decision.Detail, "spiffe://prod/chief") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestADelegatorsLifeCounts: a token in somebody's name lives no longer than one's own would.
func TestADelegatorsLifeCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(inventory, "spiffe://prod/report, owner: team-fin,", "spiffe://prod/report, owner: team-fin, max_life: 20s,", 1)
		known, err := registry.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.Registry = known })
		_, b, c := h.through()
		later := h.issue(small, c.Task.ID)
		own := h.issue(night, h.begin(night, nil).Task.ID)
		for name, one := range map[string]struct {
			issued broker.Issued
			want   time.Duration
		}{
			"joined": {b.Tokens[0], 20 * time.Second}, "joined by it": {c.Tokens[0], 20 * time.Second},
			"later": {later, 20 * time.Second}, "its own": {own, broker.DefaultTokenLife},
		} {
			if one.issued.Life != one.want {
				t.Errorf("%s: it lives for %s instead of %s", name, one.issued.Life, one.want)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

// without is an inventory that lacks one workload.
type without struct {
	broker.Registry
	id spiffeid.ID
}

func (w without) Workload(id spiffeid.ID) (broker.WorkloadRegistration, error) {
	if id == w.id {
		return broker.WorkloadRegistration{}, broker.ErrUnregistered
	}
	return w.Registry.Workload(id)
}

// TestNoPolicyWidensADelegation beyond the task, not even one that is wrong.
func TestNoPolicyWidensADelegation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.Policy = generous{} })
		a := newHarness(t, store, nil).begin(report, func(r *broker.BeginRequest) {
			r.Ceiling = broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}}
		})
		b := h.join(night, h.delegate(report, a.Task.ID, night), nil)
		if c := b.Task.Ceiling; c.Scopes.String() != "orders:read" || !equal(c.Audiences, broker.Audiences{"orders"}) {
			t.Errorf("what has joined a task with orders:read has %+v", c)
		}
		if told := h.audit.of(broker.EventTaskDelegated); len(told) != 1 || told[0].Scopes.String() != "orders:read" {
			t.Errorf("recorded: %+v", told)
		}
	})
}

// TestAHandleIsGoodOnce, however many come with it at once, and at which replica.
func TestAHandleIsGoodOnce(t *testing.T) {
	inBubble(t, func(h *harness) {
		secret := []byte(strings.Repeat("s", broker.EndKeySecretSize))
		shared := func(c *broker.Config) { c.EndKeySecret = secret }
		one, two := newHarness(h.t, h.store, shared), newHarness(h.t, h.store, shared)
		a := one.begin(report, nil)
		d := one.delegate(report, a.Task.ID, night)
		var mu sync.Mutex
		counts := map[string]int{}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				_, err := []*harness{one, two}[i%2].tryJoin(night, d.Handle, withToken)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					counts["joined"]++
				case errors.Is(err, broker.ErrUsed):
					counts["used"]++
				default:
					h.t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		if counts["joined"] != 1 || counts["used"] != 99 {
			h.t.Errorf("%v", counts)
		}
	})
}

// slowStore takes its time to commit.
type slowStore struct {
	broker.Store
	commit time.Duration
}

func (s *slowStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	time.Sleep(s.commit)
	return s.Store.Grant(ctx, r)
}

// TestAHandleIsGoodOnceToTheEnd: who comes to the store when it is over must not find that forgotten.
func TestAHandleIsGoodOnceToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{Store: newFaulty(t)}
		h := newHarness(t, store, nil)
		a := h.begin(report, func(r *broker.BeginRequest) { r.Lease = broker.MaxLease })
		d, err := h.tryDelegate(report, a.Task.ID, broker.Delegation{To: workload(night).ID, Life: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		h.join(night, d, nil)
		time.Sleep(time.Until(d.Expires) - time.Millisecond)
		store.commit = 300 * time.Millisecond
		_, err = h.tryJoin(night, d.Handle, nil)
		want(t, err, broker.ErrUsed)
	})
}

// TestARepeatedJoinIsTheSameTask: by its key, and no other delegation's.
func TestARepeatedJoinIsTheSameTask(t *testing.T) {
	inBubble(t, func(h *harness) {
		a := h.begin(report, nil)
		d, other := h.delegate(report, a.Task.ID, night), h.delegate(report, a.Task.ID, night)
		keyed := func(r *broker.BeginRequest) { withToken(r); r.Key = "k1" }
		first := h.join(night, d, keyed)
		again := h.join(night, d, keyed)
		if again.Task.ID != first.Task.ID || !again.Replayed || again.Tokens[0].Grant.ID != first.Tokens[0].Grant.ID {
			h.t.Errorf("got %+v; want %+v again", again.Task, first.Task)
		}
		_, err := h.tryJoin(night, other.Handle, keyed)
		want(h.t, err, broker.ErrMismatch)
		_, err = h.tryJoin(night, d.Handle, func(r *broker.BeginRequest) { keyed(r); r.Purpose = "another" })
		want(h.t, err, broker.ErrMismatch)
		_, err = h.tryJoin(night, d.Handle, func(r *broker.BeginRequest) { keyed(r); r.Key = "k2" })
		want(h.t, err, broker.ErrUsed)
		h.deny("spiffe://prod/report") // the delegator's tokens, and those in its name
		if again := h.join(night, d, keyed); len(again.Tokens) != 0 {
			h.t.Errorf("a repeated join signs what was revoked: %+v", again.Tokens)
		}
		h.end(report, a.Task.ID)
		_, err = h.tryJoin(night, d.Handle, keyed)
		want(h.t, err, broker.ErrEnded)
	})
}

// TestWhatCannotBeRecordedIsNotDelegated, nor joined: and a handle that came to nothing is still good.
func TestWhatCannotBeRecordedIsNotDelegated(t *testing.T) {
	inBubble(t, func(h *harness) {
		a := h.begin(report, nil)
		d := h.delegate(report, a.Task.ID, night)
		h.audit.break_(errors.New("the disk is full"))
		_, err := h.tryDelegate(report, a.Task.ID, broker.Delegation{To: workload(night).ID})
		want(h.t, err, broker.ErrAudit)
		_, err = h.tryJoin(night, d.Handle, withToken)
		want(h.t, err, broker.ErrAudit)
		h.audit.break_(nil)
		time.Sleep(5 * time.Second)
		h.join(night, d, withToken)
	})
}

// TestTreesOfDelegations are as deep as others, and have as many children.
func TestTreesOfDelegations(t *testing.T) {
	inBubble(t, func(h *harness) {
		whose, at := report, h.begin(report, nil).Task
		for len(at.Path) < broker.MaxDepth {
			to := map[string]string{report: night, night: report}[whose]
			d, err := h.tryDelegate(whose, at.ID, broker.Delegation{To: workload(to).ID, Ceiling: broker.Ceiling{Audiences: broker.Audiences{"orders"}}})
			if err != nil {
				h.t.Fatal(err)
			}
			whose, at = to, h.join(to, d, nil).Task
		}
		if len(at.Delegators) != broker.MaxDepth-1 || at.Delegators[0] != workload(report).ID || at.Delegators[6] != workload(report).ID {
			h.t.Errorf("in the name of %v", at.Delegators)
		}
		issued, err := h.Issue(ctx, workload(whose), at.ID, broker.TokenRequest{Audience: "orders"})
		if err != nil || issued.Grant.Scopes.String() != "orders:read" {
			h.t.Errorf("%+v, %v", issued.Grant, err)
		}
		_, err = h.tryDelegate(whose, at.ID, broker.Delegation{To: workload(small).ID})
		want(h.t, err, broker.ErrInvalid)
	})
}

// TestJoinsCountAsChildren, and as tasks of who joins.
func TestJoinsCountAsChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) {
			known, err := registry.Parse([]byte(crowd))
			if err != nil {
				t.Fatal(err)
			}
			c.Registry = known
		})
		a := h.begin(report, func(r *broker.BeginRequest) { r.Lease = broker.MaxLease })
		for range broker.MaxChildren {
			h.join("crowd", h.delegate(report, a.Task.ID, "crowd"), nil)
		}
		d := h.delegate(report, a.Task.ID, "crowd")
		_, err = h.tryJoin("crowd", d.Handle, nil)
		if quota := (*broker.QuotaExceeded)(nil); !errors.As(err, &quota) || quota.Limit != broker.MaxChildren {
			t.Errorf("one child more: %v", err)
		}
		other := h.begin(report, nil)
		for range 2 {
			h.join(small, h.delegate(report, other.Task.ID, small), nil)
		}
		_, err = h.tryJoin(small, h.delegate(report, other.Task.ID, small).Handle, nil)
		if quota := (*broker.QuotaExceeded)(nil); !errors.As(err, &quota) || quota.Limit != 2 {
			t.Errorf("one task more: %v", err)
		}
	})
}

// TestP7_NothingJoinsAnEndedTask: however a join meets the end of what was delegated, or a lock of the delegator,
// nothing that was handed out is alive when both have answered.
func TestP7_NothingJoinsAnEndedTask(t *testing.T) {
	const rounds = 1000
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) {
			known, err := registry.Parse([]byte(crowd))
			if err != nil {
				t.Fatal(err)
			}
			c.Registry = known
		})
		inTime := 0
		for round := range rounds {
			if round%300 == 299 {
				time.Sleep(2 * time.Minute) // or there are too many, since they count until their leases are over
			}
			root := h.begin("crowd", nil).Task.ID
			above := root
			for range round % 3 {
				above = h.begin("crowd", func(r *broker.BeginRequest) { r.Parent = above }).Task.ID
			}
			d := h.delegate("crowd", above, report)
			var joined broker.Begun
			var failed error
			var wg sync.WaitGroup
			wg.Go(func() { joined, failed = h.tryJoin(report, d.Handle, withToken) })
			wg.Go(func() { h.end("crowd", root) })
			wg.Wait()
			switch {
			case failed == nil:
				inTime++
				if h.live(report, joined.Tokens[0].Grant.ID) {
					t.Fatal("a grant of what has joined in time is live")
				}
			case !errors.Is(failed, broker.ErrEnded):
				t.Fatalf("join: %v; want ErrEnded or none", failed)
			}
			if _, err := h.tryJoin(report, d.Handle, nil); !errors.Is(err, broker.ErrEnded) {
				t.Fatalf("join after the end: %v; want ErrEnded", err)
			}
		}
		t.Logf("%d of %d have joined in time", inTime, rounds)
	})
}

// TestWhatHasJoinedLivesNoLonger than what was delegated, whatever it asks for.
func TestWhatHasJoinedLivesNoLonger(t *testing.T) {
	inBubble(t, func(h *harness) {
		a := h.begin(report, func(r *broker.BeginRequest) { r.Deadline = 20 * time.Second })
		d, err := h.tryDelegate(report, a.Task.ID, broker.Delegation{To: workload(night).ID, Life: broker.MaxDelegation})
		if err != nil {
			h.t.Fatal(err)
		}
		b := h.join(night, d, func(r *broker.BeginRequest) {
			r.Deadline, r.Tokens = broker.MaxDeadline, []broker.TokenRequest{{Audience: "orders", Life: broker.MaxTokenLife}}
		})
		if until := a.Task.Deadline; d.Expires.After(until) || !b.Task.Deadline.Equal(until) || b.Tokens[0].Grant.Expires.After(until) {
			h.t.Errorf("delegated until %s, joined until %s with a token until %s; want %s at most", d.Expires, b.Task.Deadline, b.Tokens[0].Grant.Expires, until)
		}
		time.Sleep(20 * time.Second)
		if got := h.at(night, b.Task.ID); got.State != broker.Expired && got.Cause != broker.CauseParent {
			h.t.Errorf("then it is %s by %s", got.State, got.Cause)
		}
	})
}
