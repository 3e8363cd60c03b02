package broker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"pgregory.net/rapid"
)

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for shard := range broker.MaxShards {
		task, grant := broker.NewTaskID(shard), broker.NewGrantID(shard)
		if id, err := broker.ParseTaskID(string(task)); err != nil || id != task || id.Shard() != shard || len(id) != 32 {
			t.Errorf("%s: %s in shard %d, %v", task, id, id.Shard(), err)
		}
		if id, err := broker.ParseGrantID(string(grant)); err != nil || id != grant || id.Shard() != shard {
			t.Errorf("%s: %v", grant, err)
		}
		if _, err := broker.ParseGrantID(string(task)); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("a task's ID is taken for a grant's: %v", err)
		}
		seen[string(task)], seen[string(grant)] = true, true
	}
	if len(seen) != 2*broker.MaxShards {
		t.Error("IDs repeat")
	}
}

func FuzzParseTaskID(f *testing.F) {
	f.Add(string(broker.NewTaskID(7)))
	f.Add("tsk_")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := broker.ParseTaskID(s)
		if err == nil && (string(id) != s || id.Shard() < 0 || id.Shard() >= broker.MaxShards) {
			t.Fatalf("%q was read as %q in shard %d", s, id, id.Shard())
		}
		_ = broker.TaskID(s).Shard() // never panics
	})
}

func FuzzParseScopes(f *testing.F) {
	f.Add("orders:read orders:write")
	f.Add("a  b")
	f.Fuzz(func(t *testing.T, text string) {
		list := strings.Split(text, " ")
		set, err := broker.ParseScopes(list)
		if err != nil {
			return
		}
		if len(set) != len(list) || !slices.IsSorted(set) || strings.ContainsAny(set.String(), "\"\\\n\t") {
			t.Fatalf("%q was read as %q", list, set)
		}
	})
}

// TestScopeAlgebra: intersection is within both, commutes, and together with the difference is whole.
func TestScopeAlgebra(t *testing.T) {
	scopes := rapid.Custom(func(t *rapid.T) broker.Scopes {
		set, err := broker.ParseScopes(rapid.SliceOfDistinct(rapid.StringMatching(`[a-d]{1,2}`), rapid.ID[string]).Draw(t, "list"))
		if err != nil {
			t.Fatal(err)
		}
		return set
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := scopes.Draw(t, "a"), scopes.Draw(t, "b")
		both, only := a.Intersect(b), a.Minus(b)
		if !slices.Equal(both, b.Intersect(a)) || len(both.Minus(a)) > 0 || len(both.Minus(b)) > 0 {
			t.Fatalf("%v and %v have %v in common", a, b, both)
		}
		if len(both)+len(only) != len(a) || len(only.Intersect(b)) > 0 {
			t.Fatalf("%v less %v is %v", a, b, only)
		}
	})
}

func TestSelectors(t *testing.T) {
	night := []string{"spiffe://prod/batch/night"}
	for _, c := range []struct {
		s    broker.Selector
		want bool
	}{
		{broker.Selector{Subject: "spiffe://prod/batch/night"}, true},
		{broker.Selector{Subject: "spiffe://prod/batch/*"}, true},
		{broker.Selector{Subject: "spiffe://prod/*"}, true},
		{broker.Selector{Subject: "spiffe://prod/bat/*"}, false},
		{broker.Selector{Subject: "spiffe://prod/batch"}, false},
		{broker.Selector{Subject: "spiffe://prod/batch/night/*"}, false},
		{broker.Selector{Subject: "spiffe://pro/*"}, false},
		{broker.Selector{Audience: "orders"}, true},
		{broker.Selector{Audience: "order"}, false},
		{broker.Selector{Scope: "orders:read"}, true},
		{broker.Selector{Scope: "orders:write"}, false},
		{broker.Selector{Subject: "spiffe://prod/*", Audience: "orders", Scope: "orders:read"}, true},
		{broker.Selector{Subject: "spiffe://prod/*", Audience: "files", Scope: "orders:read"}, false},
	} {
		if got := c.s.Matches(night, "orders", []string{"orders:read"}); got != c.want {
			t.Errorf("%+v: %v", c.s, got)
		}
		if err := c.s.Validate(); err != nil {
			t.Errorf("%+v: %v", c.s, err)
		}
	}
	for _, bad := range []broker.Selector{{}, {Subject: "*"}, {Subject: "spiffe://*"}, {Subject: "spiffe://prod/a*"}, {Subject: "spiffe://prod/*/x"}, {Subject: "SPIFFE://prod/a"}} {
		if err := bad.Validate(); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestIDsComeInOrder: the IDs of tasks and grants are ones of their shard, order by when they were made, and differ.
func TestIDsComeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last broker.TaskID
		var lastGrant broker.GrantID
		for range 100 {
			id, grant := broker.NewTaskID(42), broker.NewGrantID(7)
			if _, err := broker.ParseTaskID(string(id)); err != nil || id.Shard() != 42 || id <= last {
				t.Errorf("%s after %s: shard %d, %v", id, last, id.Shard(), err)
			}
			if _, err := broker.ParseGrantID(string(grant)); err != nil || grant.Shard() != 7 || grant <= lastGrant {
				t.Errorf("%s after %s: shard %d, %v", grant, lastGrant, grant.Shard(), err)
			}
			last, lastGrant = id, grant
			time.Sleep(time.Millisecond)
		}
	})
	ids := map[broker.TaskID]bool{}
	for range 10_000 { // of few milliseconds
		ids[broker.NewTaskID(0)] = true
	}
	if len(ids) != 10_000 {
		t.Errorf("%d of 10000 IDs differ", len(ids))
	}
}
