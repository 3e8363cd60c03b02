package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var ada = spiffeid.RequireFromString("spiffe://prod/ops/ada")

const because = "INC-4411: leaked log bundle"

// mass revokes what a filter means, in ada's name.
func (h *harness) mass(f broker.Filter, edit func(*broker.Mass)) (broker.MassRevocation, error) {
	h.t.Helper()
	m := broker.Mass{Filter: f, Actor: ada.String(), Address: "192.0.2.9:1", Reason: because, Ticket: "INC-4411"}
	if edit != nil {
		edit(&m)
	}
	return h.RevokeAll(context.Background(), m)
}

func (h *harness) liveGrants() string {
	h.t.Helper()
	page, err := h.ListGrants(context.Background(), broker.ListRequest{Live: true, Size: broker.MaxPage})
	if err != nil {
		h.t.Fatal(err)
	}
	var names []string
	for _, s := range page.Grants {
		names = append(names, s.Task.Name+":"+s.Grant.Audience)
	}
	return sorted(names)
}

func (h *harness) activeTasks() string {
	h.t.Helper()
	names, _ := h.walk(broker.ListRequest{States: []broker.State{broker.Active}})
	return sorted(names)
}

func twoAudiences(r *broker.GrantRequest) {
	r.Begin.Ceiling = broker.Ceiling{Audiences: broker.Audiences{"files", "orders"}, Scopes: broker.Scopes{"orders:read"}}
}

// crowd are the tasks that revocations are tried on.
func (h *harness) crowd() (root broker.TaskID, grants []broker.GrantID) {
	h.t.Helper()
	root, grants = h.seed("spiffe://prod/report", "root", func(r *broker.GrantRequest) {
		twoAudiences(r)
		r.Begin.Labels = map[string]string{"env": "prod"}
	})
	h.seed("spiffe://prod/report", "child", func(r *broker.GrantRequest) {
		r.Begin.Parent, r.Task = root, broker.NewTaskID(root.Shard())
	})
	h.seed("spiffe://prod/batch/night", "night", twoAudiences)
	h.seed("spiffe://partner/agent", "agent", nil)
	h.denied("orders")
	return root, grants
}

const everyGrant = "agent:orders child:orders night:files night:orders root:files root:orders"

// Each selector kills what it means and nothing else, as the plan has said, and the record and the audit log say so.
func TestRevokeAll(t *testing.T) {
	for name, test := range map[string]struct {
		filter       func(root broker.TaskID, grants []broker.GrantID) broker.Filter
		what         broker.What
		grants, left string // what is live afterwards
		tasks        string // what is active afterwards
		entries      int
	}{
		"a workload":            {only(broker.Filter{Workloads: []string{"spiffe://prod/report"}}), "", "agent:orders night:files night:orders", "", "agent child night root", 1},
		"all below":             {only(broker.Filter{Workloads: []string{"spiffe://prod/*"}}), "", "agent:orders", "", "agent child night root", 1},
		"an audience":           {only(broker.Filter{Audiences: []string{"files"}}), "", "agent:orders child:orders night:orders root:orders", "", "agent child night root", 1},
		"an owner's audience":   {only(broker.Filter{Owners: []string{"team-fin"}, Audiences: []string{"orders"}}), "", "agent:orders night:files root:files", "", "agent child night root", 3},
		"everything":            {only(broker.Filter{All: true}), "", "", "", "agent child night root", 1},
		"a label":               {only(broker.Filter{Labels: map[string]string{"env": "prod"}}), "", "agent:orders night:files night:orders", "", "agent night", 1},
		"the grants of a label": {only(broker.Filter{Labels: map[string]string{"env": "prod"}}), broker.WhatGrants, "agent:orders child:orders night:files night:orders", "", "agent child night root", 2},
		"a tree":                {func(root broker.TaskID, _ []broker.GrantID) broker.Filter { return broker.Filter{Root: root} }, "", "agent:orders night:files night:orders", "", "agent night", 1},
		"a task": {func(root broker.TaskID, _ []broker.GrantID) broker.Filter {
			return broker.Filter{Tasks: []broker.TaskID{root}}
		}, "", "agent:orders night:files night:orders", "", "agent night", 1},
		"a task's grants": {func(root broker.TaskID, _ []broker.GrantID) broker.Filter {
			return broker.Filter{Tasks: []broker.TaskID{root}}
		}, broker.WhatGrants, "agent:orders night:files night:orders", "", "agent child night root", 3},
		"a grant":             {func(_ broker.TaskID, grants []broker.GrantID) broker.Filter { return broker.Filter{Grants: grants[:1]} }, "", "agent:orders child:orders night:files night:orders root:orders", "", "agent child night root", 1},
		"a workload's tasks":  {only(broker.Filter{Workloads: []string{"spiffe://prod/report"}}), broker.WhatTasks, "agent:orders night:files night:orders", "", "agent night", 2},
		"an audience's tasks": {only(broker.Filter{Audiences: []string{"files"}}), broker.WhatTasks, "agent:orders", "", "agent", 3},
		"all tasks":           {only(broker.Filter{All: true}), broker.WhatTasks, "", "", "", 4},
		"nothing there":       {only(broker.Filter{Names: []string{"none"}}), "", everyGrant, "", "agent child night root", 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(h *harness) {
				root, grants := h.crowd()
				f := test.filter(root, grants)
				plan, err := h.PlanRevocation(context.Background(), ada.String(), f, test.what)
				if err != nil || !plan.Complete {
					h.t.Fatalf("the plan: %+v, %v", plan, err)
				}
				if h.liveGrants() != everyGrant {
					h.t.Error("a plan has done something")
				}
				done, err := h.mass(broker.Filter{}, func(m *broker.Mass) { m.Plan, m.MayAll = plan.Text, true })
				if err != nil || done.Left != "" || !done.Durable || done.Counted == nil || *done.Counted != plan.Grants || done.Event == "" {
					h.t.Fatalf("%+v, %v", done, err)
				}
				if got := h.liveGrants(); got != test.grants {
					h.t.Errorf("live are %q, want %q", got, test.grants)
				}
				if got := h.activeTasks(); got != test.tasks {
					h.t.Errorf("active are %q, want %q", got, test.tasks)
				}
				hit := strings.Count(everyGrant, ":") - strings.Count(test.grants, ":")
				if plan.Grants != hit || len(plan.Sample) != hit {
					h.t.Errorf("%d grants were planned, with %d samples, and %d hit", plan.Grants, len(plan.Sample), hit)
				}
				if gone := len(strings.Fields("agent child night root")) - len(strings.Fields(test.tasks)); plan.What == broker.WhatTasks && plan.Tasks != gone {
					h.t.Errorf("%d tasks were planned, and %d ended", plan.Tasks, gone)
				}
				if plan.Entries != test.entries || done.Entries != test.entries {
					h.t.Errorf("%d entries were planned, and %d written; want %d", plan.Entries, done.Entries, test.entries)
				}
				h.checkRecords(done)
			})
		})
	}
}

func only(f broker.Filter) func(broker.TaskID, []broker.GrantID) broker.Filter {
	return func(broker.TaskID, []broker.GrantID) broker.Filter { return f }
}

// checkRecords looks for a revocation where it must be.
func (h *harness) checkRecords(done broker.MassRevocation) {
	h.t.Helper()
	found, err := h.FindRevocation(context.Background(), done.ID)
	if err != nil || found.Reason != because || found.Ticket != "INC-4411" || found.Actor != ada.String() || found.Entries != done.Entries {
		h.t.Errorf("the record: %+v, %v", found, err)
	}
	whole := h.audit.of(broker.EventApplied)
	if len(whole) != 1 || whole[0].ID != done.Event || whole[0].Revocation != done.ID || whole[0].Actor != ada.String() || whole[0].Reason != because ||
		whole[0].Ticket != "INC-4411" || whole[0].Address != "192.0.2.9:1" || whole[0].Mass.Filter.String() != done.Filter.String() {
		h.t.Errorf("the event of the whole: %+v", whole)
	}
	parts := append(append(h.audit.of(broker.EventTaskEnded), h.audit.of(broker.EventGrantRevoked)...), h.audit.of(broker.EventRevoked)...)
	if len(parts) != done.Entries {
		h.t.Errorf("%d events of %d entries", len(parts), done.Entries)
	}
	for _, e := range parts {
		if e.Revocation != done.ID || e.Actor != ada.String() || e.Reason != because || e.Cause != broker.CauseOperator && e.Cause != broker.CauseParent {
			h.t.Errorf("an event: %+v", e)
		}
	}
}

// What is refused does nothing, and says what is wrong.
func TestRevokeAllRefuses(t *testing.T) {
	inBubble(t, func(h *harness) {
		root, grants := h.crowd()
		many := make([]string, broker.MaxSelectors+1)
		for i := range many {
			many[i] = fmt.Sprintf("spiffe://prod/w%d", i)
		}
		for field, edit := range map[string]func(*broker.Mass){
			"selector":          func(m *broker.Mass) { m.Filter = broker.Filter{} },
			"reason":            func(m *broker.Mass) { m.Reason = "too short" },
			"ticket":            func(m *broker.Mass) { m.Ticket = "a\nb" },
			"actor":             func(m *broker.Mass) { m.Actor = "" },
			"what":              func(m *broker.Mass) { m.What = "keys" },
			"plan":              func(m *broker.Mass) { m.Plan = "pln_x" },
			"max_affected":      func(m *broker.Mass) { n := -1; m.MaxAffected = &n },
			"wait_seconds":      func(m *broker.Mass) { m.Wait = broker.MaxWait + 1 },
			"selector.workload": func(m *broker.Mass) { m.Filter.Workloads = []string{"x"} },
			"selector.grant":    func(m *broker.Mass) { m.Filter.Grants, m.What = grants, broker.WhatTasks },
			"selector.all":      func(m *broker.Mass) { m.Filter.All = true },
		} {
			_, err := h.mass(broker.Filter{Audiences: []string{"orders"}}, edit)
			if bad := (*broker.Invalid)(nil); !errors.As(err, &bad) || bad.Field != field {
				t.Errorf("%s: %v", field, err)
			}
		}
		_, err := h.mass(broker.Filter{Owners: []string{"nobody"}}, nil)
		want(t, err, broker.ErrInvalid)
		_, err = h.mass(broker.Filter{Workloads: many[:51], Audiences: []string{"a", "b"}}, nil)
		want(t, err, broker.ErrInvalid)
		_, err = h.mass(broker.Filter{All: true}, nil)
		want(t, err, broker.ErrAll)
		_, err = h.mass(broker.Filter{Tasks: []broker.TaskID{broker.NewTaskID(0)}}, nil)
		want(t, err, broker.ErrNotFound)
		found, err := h.ListTasks(context.Background(), broker.ListRequest{Filter: broker.Filter{Names: []string{"child"}}})
		if err != nil || len(found.Tasks) != 1 {
			t.Fatalf("%+v, %v", found, err)
		}
		child := found.Tasks[0].ID
		_, err = h.mass(broker.Filter{Root: child}, nil)
		want(t, err, broker.ErrInvalid)
		_, err = h.PlanRevocation(context.Background(), ada.String(), broker.Filter{Root: child}, "")
		want(t, err, broker.ErrInvalid)
		if h.liveGrants() != everyGrant || len(h.audit.of(broker.EventApplied)) != 0 {
			t.Error("something has happened")
		}
		if _, err := h.mass(broker.Filter{Workloads: many[1:51], Audiences: []string{"a", "b"}}, nil); err != nil {
			t.Errorf("as many combinations as may be: %v", err)
		}
		if _, err := h.mass(broker.Filter{Tasks: []broker.TaskID{root, broker.NewTaskID(0)}}, nil); err != nil {
			t.Errorf("a task that is there and one that is not: %v", err)
		}
	})
}

// A plan is good for whoever asked for it, for its time, and for about as much as it has said.
func TestPlans(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx := context.Background()
		filter := broker.Filter{Names: []string{"x"}}
		grow := func(n int) {
			for range n {
				h.seed("spiffe://prod/report", "x", nil)
			}
		}
		apply := func(text string, most int) error {
			_, err := h.mass(broker.Filter{}, func(m *broker.Mass) {
				if m.Plan = text; most >= 0 {
					m.MaxAffected = &most
				}
			})
			return err
		}
		grow(20)
		plan, err := h.PlanRevocation(ctx, ada.String(), filter, broker.WhatGrants)
		if err != nil || plan.Grants != 20 || plan.Tasks != 20 || len(plan.Sample) != broker.MaxSample || plan.Workloads[0] != (broker.Counted{Name: "spiffe://prod/report", Grants: 20}) || plan.Owners[0].Name != "team-fin" {
			t.Fatalf("%+v, %v", plan, err)
		}
		other, err := h.PlanRevocation(ctx, "spiffe://prod/ops/bob", filter, "")
		if err != nil {
			t.Fatal(err)
		}
		want(t, apply(other.Text, -1), broker.ErrInvalid)
		elsewhere := newHarness(h.t, h.store, nil)
		foreign, err := elsewhere.PlanRevocation(ctx, ada.String(), filter, "")
		if err != nil {
			t.Fatal(err)
		}
		want(t, apply(foreign.Text, -1), broker.ErrInvalid)
		want(t, apply(plan.Text, 19), broker.ErrPlanChanged)
		grow(11)
		want(t, apply(plan.Text, -1), broker.ErrPlanChanged)
		want(t, apply(plan.Text, 31), broker.ErrPlanChanged)
		if h.liveGrants() == "" {
			t.Error("a plan that was refused has done something")
		}
		again, err := h.PlanRevocation(ctx, ada.String(), filter, broker.WhatGrants)
		if err != nil {
			t.Fatal(err)
		}
		grow(10)
		if err := apply(again.Text, 41); err != nil {
			t.Errorf("ten more than planned: %v", err)
		}
		if got := h.liveGrants(); got != "" {
			t.Errorf("live are %s", got)
		}
		old, err := h.PlanRevocation(ctx, ada.String(), filter, "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(broker.PlanLife)
		want(t, apply(old.Text, -1), broker.ErrPlanExpired)
	})
}

// Where tasks are to end, their number counts as well: many have no live token when somebody looks.
func TestPlansCountTasks(t *testing.T) {
	inBubble(t, func(h *harness) {
		filter := broker.Filter{Labels: map[string]string{"env": "prod"}}
		grow := func(n int) {
			for range n {
				h.begin(report, func(r *broker.BeginRequest) { r.Labels = filter.Labels })
			}
		}
		grow(5)
		plan, err := h.PlanRevocation(context.Background(), ada.String(), filter, "")
		if err != nil || plan.Tasks != 5 || plan.Grants != 0 {
			t.Fatalf("%+v, %v", plan, err)
		}
		most := func(n int) func(*broker.Mass) { return func(m *broker.Mass) { m.MaxAffected = &n } }
		_, err = h.mass(filter, most(4))
		if changed := (*broker.PlanChanged)(nil); !errors.As(err, &changed) || changed.What != broker.WhatTasks || changed.Most != 4 || changed.Now != 5 {
			t.Errorf("one task more than max_affected: %v", err)
		}
		apply := func(m *broker.Mass) { m.Filter, m.Plan = broker.Filter{}, plan.Text }
		grow(11)
		_, err = h.mass(filter, apply)
		if changed := (*broker.PlanChanged)(nil); !errors.As(err, &changed) || changed.What != broker.WhatTasks || changed.Planned != 5 || changed.Now != 16 {
			t.Errorf("eleven tasks more than planned: %v", err)
		}
		if done, err := h.mass(filter, most(16)); err != nil || done.Tasks != 16 {
			t.Errorf("as many tasks as max_affected: %+v, %v", done, err)
		}
	})
}

// family begins the root of a tree with two branches of a leaf each, and returns who is where.
func (h *harness) family() map[string]broker.TaskID {
	h.t.Helper()
	all := map[string]broker.TaskID{}
	begin := func(name, parent, env string) {
		all[name], _ = h.seed("spiffe://prod/report", name, func(r *broker.GrantRequest) {
			r.Begin.Labels = map[string]string{"env": env}
			if parent != "" {
				r.Begin.Parent = all[parent]
				r.Task = broker.NewTaskID(all[parent].Shard())
			}
		})
	}
	begin("root", "", "prod")
	begin("left", "root", "prod")
	begin("leftmost", "left", "test")
	begin("right", "root", "test")
	begin("rightmost", "right", "prod")
	h.denied("orders")
	return all
}

// A tree ends by one write: a task below another one that ends makes no entry, however the two are meant and in whatever
// order they are found, and all below counts as hit.
func TestRevokeAllTrees(t *testing.T) {
	named := func(names ...string) func(map[string]broker.TaskID) broker.Filter {
		return func(all map[string]broker.TaskID) (f broker.Filter) {
			for _, name := range names {
				f.Tasks = append(f.Tasks, all[name])
			}
			return f
		}
	}
	label := func(env string) func(map[string]broker.TaskID) broker.Filter {
		return func(map[string]broker.TaskID) broker.Filter {
			return broker.Filter{Labels: map[string]string{"env": env}}
		}
	}
	for name, test := range map[string]struct {
		filter     func(map[string]broker.TaskID) broker.Filter
		hit, ended int
		left       string
	}{
		"the root":                      {named("root"), 5, 1, ""},
		"all of them":                   {named("root", "left", "leftmost", "right", "rightmost"), 5, 1, ""},
		"a branch and its leaf":         {named("left", "leftmost"), 2, 1, "right rightmost root"},
		"a branch and the other's leaf": {named("left", "rightmost"), 3, 2, "right root"},
		"the root and leaves two below": {label("prod"), 5, 1, ""},
		"a branch and the other's":      {label("test"), 3, 2, "left root"},
	} {
		t.Run(name, func(t *testing.T) {
			for range 8 { // IDs are random, and so is the order in which the tasks are found
				inBubble(t, func(h *harness) {
					f := test.filter(h.family())
					plan, err := h.PlanRevocation(context.Background(), ada.String(), f, "")
					if err != nil || plan.Tasks != test.hit || plan.Grants != test.hit || plan.Entries != test.ended {
						h.t.Fatalf("%d tasks, %d grants, %d entries are planned, %v; want %d, %d, %d", plan.Tasks, plan.Grants, plan.Entries, err, test.hit, test.hit, test.ended)
					}
					few := test.hit - 1
					_, err = h.mass(f, func(m *broker.Mass) { m.MaxAffected = &few })
					want(h.t, err, broker.ErrPlanChanged)
					done, err := h.mass(f, nil)
					if err != nil || done.Tasks != test.ended || done.Entries != test.ended || done.Left != "" {
						h.t.Errorf("%+v, %v", done, err)
					}
					if got := h.activeTasks(); got != test.left {
						h.t.Errorf("active are %q, want %q", got, test.left)
					}
					if got := strings.ReplaceAll(h.liveGrants(), ":orders", ""); got != test.left {
						h.t.Errorf("live are %q, want %q", got, test.left)
					}
					h.checkRecords(done)
					again, err := h.mass(f, nil)
					if err != nil || again.Tasks != 0 || again.Entries != 0 {
						h.t.Errorf("once more: %+v, %v", again, err)
					}
				})
			}
		})
	}
}

// short is a store that goes away after so many pages or chunks.
type short struct {
	broker.Store
	lists, ends atomic.Int32
}

func (s *short) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	if !q.Due && s.lists.Add(-1) < 0 {
		return broker.Page{}, broker.ErrUnavailable
	}
	return s.Store.List(ctx, q)
}

func (s *short) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	if !ends[0].IfDue && s.ends.Add(-1) < 0 {
		return nil, broker.ErrUnavailable
	}
	return s.Store.End(ctx, ends)
}

// When the store goes away in the middle, the answer and the record say what is not done; to repeat it does the rest.
// What could not even begin is an error, and what is named by ID is in force here.
func TestRevokeAllBreaksOff(t *testing.T) {
	inBubble(t, func(h *harness) {
		s := &short{Store: h.store}
		s.lists.Store(1 << 20)
		s.ends.Store(1 << 20)
		h = newHarness(h.t, s, func(c *broker.Config) { c.SweepInterval = time.Hour })
		for range broker.MaxPage + 1 {
			h.seed("spiffe://prod/report", "x", nil)
		}
		h.denied("orders")
		filter := broker.Filter{Workloads: []string{"spiffe://prod/report"}}
		tasks := func(m *broker.Mass) { m.What = broker.WhatTasks }
		s.ends.Store(2) // the entry of the selector, and a chunk
		done, err := h.mass(filter, tasks)
		if err != nil || done.Left == "" || done.Tasks == 0 || done.Tasks > broker.MaxPage || !strings.Contains(done.Left, "store went away") {
			h.t.Fatalf("%+v, %v", done, err)
		}
		if got := h.liveGrants(); got != "" {
			t.Error("the selector is not in force")
		}
		if found, err := h.FindRevocation(context.Background(), done.ID); err != nil || found.Left != done.Left {
			t.Errorf("%+v, %v", found, err)
		}
		s.ends.Store(1 << 20)
		again, err := h.mass(filter, tasks)
		if err != nil || again.Left != "" || done.Tasks+again.Tasks != broker.MaxPage+1 {
			t.Errorf("%d and then %d, %v, left: %s", done.Tasks, again.Tasks, err, again.Left)
		}
		if got := h.activeTasks(); got != "" {
			t.Errorf("active are still %s", got)
		}
		if got := len(h.audit.of(broker.EventTaskEnded)); got != broker.MaxPage+1 {
			t.Errorf("%d ends are recorded", got)
		}
		id, _ := h.seed("spiffe://prod/report", "y", nil)
		s.ends.Store(0)
		_, err = h.mass(filter, nil)
		want(t, err, broker.ErrUnavailable)
		here, err := h.mass(broker.Filter{Tasks: []broker.TaskID{id}}, nil)
		if err != nil || here.Durable || here.Tasks != 1 || !h.names("orders", string(id)) {
			t.Errorf("%+v, %v", here, err)
		}
		s.ends.Store(1 << 20)
		time.Sleep(time.Second)
		if got := h.states([]broker.TaskID{id}); got["revoked operator"] != 1 {
			t.Errorf("it came to %v", got)
		}
	})
}

// one is a store that cannot tell of the second target of a call.
type one struct{ broker.Store }

func (s *one) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	if len(ends) != 2 || ends[0].IfDue {
		return s.Store.End(ctx, ends)
	}
	replies, err := s.Store.End(ctx, ends[:1])
	return append(replies, broker.EndReply{Err: broker.ErrUnavailable}), err
}

// Of two tasks that are named the store has one, and is away for the other: each ends once, and its event says of what it is part.
func TestRevokeAllIsHalfAway(t *testing.T) {
	inBubble(t, func(h *harness) {
		h = newHarness(h.t, &one{h.store}, nil)
		first, _ := h.seed("spiffe://prod/report", "x", nil)
		second, _ := h.seed("spiffe://prod/report", "y", nil)
		done, err := h.mass(broker.Filter{Tasks: []broker.TaskID{first, second}}, nil)
		if err != nil || done.Tasks != 2 || done.Entries != 2 || done.Durable {
			t.Errorf("%+v, %v", done, err)
		}
		time.Sleep(2 * time.Second)
		ended := h.audit.of(broker.EventTaskEnded)
		if len(ended) != 2 || len(h.audit.of(broker.EventEndMoot)) != 0 || h.activeTasks() != "" {
			t.Errorf("%d events, active are %s", len(ended), h.activeTasks())
		}
		for _, e := range ended {
			if e.Revocation != done.ID || e.Ticket != "INC-4411" || e.Actor != ada.String() || e.Reason != because {
				t.Errorf("%+v", e)
			}
		}
	})
}

// Records are listed from the newest on, page by page.
func TestRevocations(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx := context.Background()
		var made []broker.RevocationID
		for range 5 {
			done, err := h.mass(broker.Filter{Audiences: []string{"orders"}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, done.ID)
			time.Sleep(time.Second)
		}
		slices.Reverse(made)
		var got []broker.RevocationID
		for after := broker.RevocationID(""); ; {
			page, next, err := h.Revocations(ctx, 2, after)
			if err != nil || len(page) > 2 {
				t.Fatal(page, err)
			}
			for _, r := range page {
				got = append(got, r.ID)
			}
			if after = next; after == "" {
				break
			}
		}
		if !slices.Equal(got, made) {
			t.Errorf("%v, want %v", got, made)
		}
		_, _, err := h.Revocations(ctx, 0, "rev_x")
		want(t, err, broker.ErrInvalid)
		_, err = h.FindRevocation(ctx, "rev_x")
		want(t, err, broker.ErrNotFound)
	})
}

// counting counts calls of End, and endings.
type counting struct {
	broker.Store
	calls, endings atomic.Int32
}

func (s *counting) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	if !ends[0].IfDue {
		s.calls.Add(1)
		s.endings.Add(int32(len(ends)))
	}
	return s.Store.End(ctx, ends)
}

// P14: 100 000 live grants by a workload, an audience or a scope are dead for look-ups and on the feed by one entry in each
// shard, a second after the answer at the latest.
func TestP14(t *testing.T) {
	const many = 100_000
	memoryStore, err := memory.New(memory.Config{Shards: 4})
	if err != nil {
		t.Fatal(err)
	}
	store := &counting{Store: memoryStore}
	h := newFreeHarness(t, store)
	for name, test := range map[string]struct {
		workload, audience string
		scopes             broker.Scopes
		filter             broker.Filter
	}{
		"workload": {"spiffe://prod/a", "orders", broker.Scopes{"orders:read"}, broker.Filter{Workloads: []string{"spiffe://prod/a"}}},
		"audience": {"spiffe://prod/b", "files", broker.Scopes{"files:write"}, broker.Filter{Audiences: []string{"files"}}},
		"scope":    {"spiffe://prod/c", "mesh", broker.Scopes{"mesh:call"}, broker.Filter{Scopes: []string{"mesh:call"}}},
	} {
		grants := h.flood(store, test.workload, test.audience, test.scopes, many)
		store.calls.Store(0)
		store.endings.Store(0)
		done, err := h.mass(test.filter, nil)
		answered := time.Now()
		if err != nil || done.Entries != 1 || store.calls.Load() != 1 || store.endings.Load() != 1 {
			t.Fatalf("%s: %+v, %v, by %d calls with %d endings", name, done, err, store.calls.Load(), store.endings.Load())
		}
		for _, id := range []broker.GrantID{grants[0], grants[len(grants)/2], grants[len(grants)-1]} {
			if s, err := h.FindGrant(context.Background(), id); err != nil || s.Live {
				t.Errorf("%s: a look-up says live: %t, %v", name, s.Live, err)
			}
		}
		for !h.fed(test.audience, done) {
			// A second is promised, and milliseconds are usual; a machine with other work must not decide.
			if time.Since(answered) > 5*time.Second {
				t.Fatalf("%s: it is not on the feed 5 s after the answer", name)
			}
		}
		if page, err := h.ListGrants(context.Background(), broker.ListRequest{Filter: test.filter, Live: true}); err != nil || len(page.Grants) != 0 {
			t.Errorf("%s: %d are listed as live, %v", name, len(page.Grants), err)
		}
	}
}

// flood issues so many grants, a hundred in a task.
func (h *harness) flood(store broker.Store, workload, audience string, scopes broker.Scopes, many int) (grants []broker.GrantID) {
	h.t.Helper()
	for i := range many / 100 {
		req := broker.GrantRequest{
			Workload: spiffeid.RequireFromString(workload), Task: broker.NewTaskID(i % 4), Control: 1 << 40,
			Begin: &broker.Beginning{Name: "flood", Purpose: "a test", Lease: 10 * time.Minute, Deadline: time.Hour},
		}
		for range 100 {
			ask := broker.Asked{ID: broker.NewGrantID(i % 4), Audience: audience, Scopes: scopes, Life: 10 * time.Minute}
			req.Grants, grants = append(req.Grants, ask), append(grants, ask.ID)
		}
		if _, err := store.Grant(context.Background(), req); err != nil {
			h.t.Fatal(err)
		}
	}
	return grants
}

// fed reports whether an audience's part of the feed has an entry of the selector in each shard.
func (h *harness) fed(audience string, done broker.MassRevocation) bool {
	h.t.Helper()
	s, err := h.feed.Snapshot(audience)
	if err != nil {
		h.t.Fatal(err)
	}
	shards := map[int]bool{}
	for _, e := range s.Entries {
		f := done.Filter
		if e.Kind == wire.KindSelector && slices.Equal(f.Workloads, some(e.Subject)) && slices.Equal(f.Audiences, some(e.Audience)) && slices.Equal(f.Scopes, some(e.Scope)) {
			shards[e.Shard] = true
		}
	}
	return len(shards) == 4
}

func some(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}
