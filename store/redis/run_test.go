package redis

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redistest"
)

// one and other are the workloads of these tests.
var (
	one   = spiffeid.RequireFromString("spiffe://example.org/one")
	other = spiffeid.RequireFromString("spiffe://example.org/other")
)

// onServer is a store with a data set of its own on a server that tests share.
func onServer(t testing.TB, s *redistest.Server, prefix string, log slog.Handler) *Store {
	t.Helper()
	store, err := New(t.Context(), Config{URL: s.URL(), Prefix: prefix, Logger: slog.New(log)}.Patient())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func asked(task broker.TaskID, grants ...broker.GrantID) broker.GrantRequest {
	req := broker.GrantRequest{Workload: one, Task: task, Control: 1 << 40, Quota: broker.Quota{Tasks: 4, Grants: 6, Children: 3}}
	for _, id := range grants {
		req.Grants = append(req.Grants, broker.Asked{ID: id, Audience: "a", Scopes: broker.Scopes{"read"}, Life: time.Minute})
	}
	return req
}

func begun(task broker.TaskID, key string, grants ...broker.GrantID) broker.GrantRequest {
	req := asked(task, grants...)
	req.Begin = &broker.Beginning{Name: "test", Purpose: "to see what happens", Lease: time.Minute, Deadline: time.Hour, Key: key}
	return req
}

// joined asks for a task of the other workload's below one of the one's.
func joined(task, parent broker.TaskID, delegation broker.DelegationID) broker.GrantRequest {
	req := begun(task, "", broker.NewGrantID(0))
	req.Workload, req.Begin.Parent = other, parent
	req.Begin.Join = &broker.Join{Delegation: delegation, Delegator: one, Until: time.Now().Add(time.Hour)}
	return req
}

func (s *Store) mustGrantCall(req broker.GrantRequest) call {
	c, ok := s.grantCall(req)
	if !ok {
		panic("no call for what can be")
	}
	return c
}

func (s *Store) mustEndCall(task broker.TaskID, w spiffeid.ID) call {
	c, ok := s.endCall(broker.Ending{
		Kind: broker.TargetTask, Task: task, Workload: w, State: broker.Completed, Cause: broker.CauseCaller, Event: broker.NewEventID(),
	})
	if !ok {
		panic("no call for what can be")
	}
	return c
}

func (s *Store) mustLookupCall(task broker.TaskID) call {
	id, _ := bareTask(task)
	return call{script: s.scripts.lookup, shard: task.Shard(), echo: id}
}

// statuses says what came of each call.
func statuses(replies []reply) (list []string) {
	for _, r := range replies {
		text := r.status
		if r.err != nil {
			text = "error"
		}
		list = append(list, text)
	}
	return list
}

// TestManyCallsInOneRun: calls of the same script and shard go into one run, and each finds what those
// before it have done.
func TestManyCallsInOneRun(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b, c, d := broker.NewTaskID(0), broker.NewTaskID(0), broker.NewTaskID(0), broker.NewTaskID(0)
	g, h := broker.NewGrantID(0), broker.NewGrantID(0)
	child := begun(b, "", broker.NewGrantID(0))
	child.Begin.Parent = a
	for _, test := range []struct {
		name  string
		calls func(s *Store) []call
		want  string
	}{
		{"a begin and its repetition", func(s *Store) []call {
			return []call{s.mustGrantCall(begun(a, "key", g)), s.mustGrantCall(begun(a, "key", g)), s.mustGrantCall(begun(b, "key", g))}
		}, "begun replayed replayed"},
		{"one key for two requests", func(s *Store) []call {
			second := begun(b, "key", h)
			second.Begin.Digest[0]++
			return []call{s.mustGrantCall(begun(a, "key", g)), s.mustGrantCall(second)}
		}, "begun mismatch"},
		{"one grant's ID for two tasks", func(s *Store) []call {
			return []call{s.mustGrantCall(begun(a, "", g)), s.mustGrantCall(begun(b, "", g))}
		}, "begun mismatch"},
		{"a child, a further token, and a token of nothing", func(s *Store) []call {
			return []call{s.mustGrantCall(begun(a, "", g)), s.mustGrantCall(child), s.mustGrantCall(asked(b, h)), s.mustGrantCall(asked(c, broker.NewGrantID(0)))}
		}, "begun begun issued not found"},
		{"quotas of tasks", func(s *Store) (calls []call) {
			for range 6 {
				calls = append(calls, s.mustGrantCall(begun(broker.NewTaskID(0), "")))
			}
			return calls
		}, "begun begun begun begun quota quota"},
		{"quotas of grants", func(s *Store) (calls []call) {
			calls = append(calls, s.mustGrantCall(begun(a, "")))
			for range 7 {
				calls = append(calls, s.mustGrantCall(asked(a, broker.NewGrantID(0))))
			}
			return calls
		}, "begun issued issued issued issued issued issued quota"},
		{"quotas of children", func(s *Store) []call {
			calls := []call{s.mustGrantCall(begun(a, ""))}
			for range 4 {
				req := begun(broker.NewTaskID(0), "")
				req.Begin.Parent, req.Quota.Tasks = a, 100
				calls = append(calls, s.mustGrantCall(req))
			}
			return calls
		}, "begun begun begun begun quota"},
		{"one delegation for two joins", func(s *Store) []call {
			return []call{
				s.mustGrantCall(begun(a, "", g)), s.mustGrantCall(joined(b, a, "dlg_x")), s.mustGrantCall(joined(c, a, "dlg_x")),
				s.mustGrantCall(joined(d, a, "dlg_y")), s.mustGrantCall(asked(a, h)),
			}
		}, "begun begun used begun issued"},
		{"ends and look-ups", func(s *Store) []call {
			s.send(t.Context(), []call{s.mustGrantCall(begun(a, "", g)), s.mustGrantCall(child)})
			return []call{
				s.mustLookupCall(a), s.mustEndCall(a, one), s.mustEndCall(a, one), s.mustEndCall(b, one), s.mustEndCall(b, other),
				s.mustEndCall(d, one), s.mustLookupCall(c),
			}
		}, "ok ok ok ok not found not found not found"},
		{"one that makes no sense", func(s *Store) []call {
			bad := s.mustGrantCall(begun(b, ""))
			bad.args = slices.Clone(bad.args)
			bad.args[7] = "no lease"
			return []call{s.mustGrantCall(begun(a, "")), bad, s.mustGrantCall(begun(c, ""))}
		}, "begun error begun"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := onServer(t, server, "one:"+strings.ReplaceAll(test.name, " ", "-")+":", slog.DiscardHandler)
			calls := test.calls(s)
			sent := commands(t.Context(), calls, []int{0, 1})
			if sameScript := calls[0].script == calls[1].script; sameScript != (len(sent) == 1) {
				t.Errorf("two calls are %d commands", len(sent))
			}
			if got := strings.Join(statuses(s.send(t.Context(), calls)), " "); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// TestBadCallSaysWhy: what failed inside a run may have happened in part, and is told with its reason.
func TestBadCallSaysWhy(t *testing.T) {
	t.Parallel()
	s := onServer(t, redistest.Start(t), "", slog.DiscardHandler)
	bad := s.mustGrantCall(begun(broker.NewTaskID(0), ""))
	bad.args[7] = "no lease"
	r := s.send(t.Context(), []call{bad})[0]
	if !errors.Is(r.err, broker.ErrUnconfirmed) || !strings.Contains(r.err.Error(), "arithmetic") {
		t.Errorf("got %v; want ErrUnconfirmed with what Lua said", r.err)
	}
}

// TestUnreadableRecordInARun is named in the log once, and takes no other call along.
func TestUnreadableRecordInARun(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var log strings.Builder
	s := onServer(t, server, "", slog.NewTextHandler(&log, nil))
	a, b := broker.NewTaskID(0), broker.NewTaskID(0)
	s.send(t.Context(), []call{s.mustGrantCall(begun(a, "")), s.mustGrantCall(begun(b, ""))})
	id, _ := bareTask(a)
	server.Must("HSET", "errand:{p00}:tasks", id, "nonsense")
	replies := s.send(t.Context(), []call{s.mustLookupCall(b), s.mustLookupCall(a), s.mustLookupCall(b)})
	if got := fmt.Sprint(statuses(replies)); got != "[ok not found ok]" {
		t.Errorf("got %s", got)
	}
	if n := strings.Count(log.String(), id); n != 1 {
		t.Errorf("the log names it %d times:\n%s", n, log.String())
	}
}

// TestARunIsLikeSingleCalls compares random calls in one run with the same ones, one after the other,
// in another data set.
func TestARunIsLikeSingleCalls(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		together := onServer(t, server, fmt.Sprintf("t%d:", n), slog.DiscardHandler)
		apart := onServer(t, server, fmt.Sprintf("a%d:", n), slog.DiscardHandler)
		defer apart.client.Close()
		defer together.client.Close()
		var tasks []broker.TaskID
		var grants []broker.GrantID
		for range 5 {
			tasks, grants = append(tasks, broker.NewTaskID(0)), append(grants, broker.NewGrantID(0))
		}
		task, grant := rapid.SampledFrom(tasks), rapid.SampledFrom(grants)
		makes := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) func(*Store) call {
			w := rapid.SampledFrom([]spiffeid.ID{one, one, one, other}).Draw(rt, "workload")
			id, g := task.Draw(rt, "task"), grant.Draw(rt, "grant")
			key := rapid.SampledFrom([]string{"", "k1", "k2"}).Draw(rt, "key")
			parent := rapid.SampledFrom(append([]broker.TaskID{"", ""}, tasks...)).Draw(rt, "parent")
			kind := rapid.IntRange(0, 3).Draw(rt, "kind")
			delegation := rapid.SampledFrom([]broker.DelegationID{"dlg_x", "dlg_y"}).Draw(rt, "delegation")
			return func(s *Store) call {
				req := begun(id, key, g)
				req.Begin.Parent, req.Workload = parent, w
				switch kind {
				case 0:
					req.Begin = nil
				case 3:
					req.Begin.Join = &broker.Join{Delegation: delegation, Delegator: one, Until: time.Now().Add(time.Hour)}
				case 1:
					return s.mustEndCall(id, w)
				}
				return s.mustGrantCall(req)
			}
		}), 1, 12).Draw(rt, "calls")
		// Two scripts are two runs, so the calls are told apart as the lanes do.
		isEnd := func(c call) bool { return c.script.name == "end" }
		var calls []call
		for _, m := range makes {
			calls = append(calls, m(together))
		}
		slices.SortStableFunc(calls, func(a, b call) int { return strings.Compare(b.script.name, a.script.name) })
		var singly []reply
		for _, c := range calls {
			c.script, c.keys = apart.scripts.grant, slices.Clone(c.keys)
			if isEnd(calls[len(singly)]) {
				c.script = apart.scripts.end
			}
			for i, key := range c.keys {
				c.keys[i] = strings.Replace(key, together.prefix, apart.prefix, 1)
			}
			c.epoch = apart.knownEpoch()
			singly = append(singly, apart.send(t.Context(), []call{c})...)
		}
		if diff := cmp.Diff(statuses(singly), statuses(together.send(t.Context(), calls))); diff != "" {
			rt.Errorf("one run is not like single calls (-apart +together):\n%s", diff)
		}
		if diff := cmp.Diff(counts(rt, apart), counts(rt, together)); diff != "" {
			rt.Errorf("what is counted differs (-apart +together):\n%s", diff)
		}
	})
}

// counts is what a data set has: tasks with their states, numbers, and the length of the feed.
func counts(rt *rapid.T, s *Store) []string {
	page, err := s.List(rt.Context(), broker.Query{})
	if err != nil {
		rt.Fatal(err)
	}
	var out []string
	for _, t := range page.Tasks {
		out = append(out, fmt.Sprintln(t.ID, t.Workload, t.State, t.Path))
	}
	for _, w := range []spiffeid.ID{one, other} {
		raw, _ := s.client.HGet(rt.Context(), keyOf(s.prefix, 0, "usage"), w.String()).Result()
		if len(raw) >= 8 {
			raw = raw[:8] // the expiries may be a second apart
		}
		out = append(out, fmt.Sprintf("%s %x", w, raw))
	}
	length, err := s.client.XLen(rt.Context(), s.feeds[0]).Result()
	if err != nil {
		rt.Fatal(err)
	}
	return append(out, fmt.Sprint(length))
}
