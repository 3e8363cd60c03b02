package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// usage is a good report of n grants.
func usage(n int) broker.UsageReport {
	r := broker.UsageReport{Audience: "orders", Batch: "batch-1", Lost: 7}
	for i := range n {
		name := []byte(strings.Repeat("a", 26))
		for at := 25; i > 0; i /= 26 {
			name[at] = byte('a' + i%26)
			at--
		}
		r.Grants = append(r.Grants, broker.GrantUsage{
			Grant: broker.GrantID("gnt_00" + string(name)),
			First: time.Now().Add(-time.Minute), Last: time.Now(), Allowed: 3, Refused: 1,
			Scopes: []broker.ScopeUsage{{Scope: "orders:read", Allowed: 3, Refused: 1}},
		})
	}
	return r
}

// TestRecordUsage makes one event of each summary, the same ones when a report comes again, and on
// whatever replica.
func TestRecordUsage(t *testing.T) {
	inBubble(t, func(h *harness) {
		orders := workload("orders")
		second, stop := startHarness(h.t, h.store, nil)
		defer stop()
		r := usage(3)
		for _, replica := range []*harness{h, h, second} {
			if err := replica.RecordUsage(h.t.Context(), orders, r); err != nil {
				h.t.Fatal(err)
			}
		}
		events := h.audit.of(broker.EventGrantUsed)
		if len(events) != 6 {
			h.t.Fatalf("%d events", len(events))
		}
		ids := map[broker.EventID]bool{}
		for i, e := range append(events, second.audit.of(broker.EventGrantUsed)...) {
			ids[e.ID] = true
			want := r.Grants[i%3]
			if e.Grant != want.Grant || e.Usage == nil || e.Usage.Allowed != 3 || e.Audience != "orders" || e.Actor != orders.ID.String() || e.Address != orders.Address || e.Time.IsZero() {
				h.t.Errorf("got %+v", e)
			}
		}
		if len(ids) != 3 {
			h.t.Errorf("%d IDs for 3 facts", len(ids))
		}
		if lost := h.audit.of(broker.EventUsageLost); len(lost) != 2 || lost[0].Lost != 7 || lost[0].ID != lost[1].ID || ids[lost[0].ID] {
			h.t.Errorf("got %+v", lost)
		}
		// Another batch, server or audience is another fact.
		other := r
		other.Batch = "batch-2"
		third := r
		third.Audience = "files"
		for _, again := range []struct {
			server string
			report broker.UsageReport
		}{{"orders", other}, {"orders-2", r}, {"orders", third}} {
			if err := h.RecordUsage(h.t.Context(), workload(again.server), again.report); err != nil {
				h.t.Fatal(err)
			}
			for _, e := range h.audit.of(broker.EventGrantUsed)[len(ids)+3:] {
				ids[e.ID] = true
			}
		}
		if len(ids) != 12 {
			h.t.Errorf("%d IDs for 12 facts", len(ids))
		}
	})
}

// TestRecordUsageBounds is each rule at its limit and one past it.
func TestRecordUsageBounds(t *testing.T) {
	var scopes []broker.ScopeUsage
	for i := range broker.MaxScopes + 1 {
		scopes = append(scopes, broker.ScopeUsage{Scope: fmt.Sprintf("s%d", i), Allowed: 1})
	}
	cases := map[string]struct {
		edit  func(*broker.UsageReport)
		field string // "" when it is good
	}{
		"good":               {func(*broker.UsageReport) {}, ""},
		"the most grants":    {func(r *broker.UsageReport) { *r = usage(broker.MaxUsageGrants) }, ""},
		"one grant too many": {func(r *broker.UsageReport) { *r = usage(broker.MaxUsageGrants + 1) }, "grants"},
		"nothing":            {func(r *broker.UsageReport) { r.Grants, r.Lost = nil, 0 }, "grants"},
		"lost alone":         {func(r *broker.UsageReport) { r.Grants = nil }, ""},
		"lost below 0":       {func(r *broker.UsageReport) { r.Lost = -1 }, "lost"},
		"lost over 2^53":     {func(r *broker.UsageReport) { r.Lost = 1<<53 + 1 }, "lost"},
		"no batch":           {func(r *broker.UsageReport) { r.Batch = "" }, "batch"},
		"the longest batch":  {func(r *broker.UsageReport) { r.Batch = strings.Repeat("b", broker.MaxBatch) }, ""},
		"a longer batch":     {func(r *broker.UsageReport) { r.Batch = strings.Repeat("b", broker.MaxBatch+1) }, "batch"},
		"a line in a batch":  {func(r *broker.UsageReport) { r.Batch = "a\nb" }, "batch"},
		"a task's ID":        {func(r *broker.UsageReport) { r.Grants[0].Grant = "tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa" }, "grants[0].grant_id"},
		"a token":            {func(r *broker.UsageReport) { r.Grants[0].Grant = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln" }, "grants[0].grant_id"},
		"a grant twice":      {func(r *broker.UsageReport) { r.Grants[1].Grant = r.Grants[0].Grant }, "grants[1].grant_id"},
		"no time":            {func(r *broker.UsageReport) { r.Grants[0].First = time.Time{} }, "grants[0].last_used_at"},
		"backwards":          {func(r *broker.UsageReport) { r.Grants[0].First = r.Grants[0].Last.Add(1) }, "grants[0].last_used_at"},
		"skewed":             {func(r *broker.UsageReport) { r.Grants[0].Last = time.Now().Add(broker.MaxSkew) }, ""},
		"of the future":      {func(r *broker.UsageReport) { r.Grants[0].Last = time.Now().Add(broker.MaxSkew + 1) }, "grants[0].last_used_at"},
		"never checked":      {func(r *broker.UsageReport) { r.Grants[0].Allowed, r.Grants[0].Refused = 0, 0 }, "grants[0].allowed"},
		"refused below 0":    {func(r *broker.UsageReport) { r.Grants[0].Refused = -1 }, "grants[0].allowed"},
		"allowed over 2^53":  {func(r *broker.UsageReport) { r.Grants[0].Allowed = 1<<53 + 1 }, "grants[0].allowed"},
		"the most scopes":    {func(r *broker.UsageReport) { r.Grants[0].Scopes = scopes[:broker.MaxScopes] }, ""},
		"a scope too many":   {func(r *broker.UsageReport) { r.Grants[0].Scopes = scopes }, "grants[0].scopes"},
		"a scope twice":      {func(r *broker.UsageReport) { r.Grants[0].Scopes = []broker.ScopeUsage{scopes[0], scopes[0]} }, "grants[0].scopes"},
		"not a scope":        {func(r *broker.UsageReport) { r.Grants[0].Scopes = []broker.ScopeUsage{{Scope: "a b", Allowed: 1}} }, "grants[0].scopes"},
		"an unused scope":    {func(r *broker.UsageReport) { r.Grants[0].Scopes = []broker.ScopeUsage{{Scope: "a"}} }, "grants[0].scopes[0].allowed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, err := memory.New(memory.Config{})
				if err != nil {
					t.Fatal(err)
				}
				h := newHarness(t, store, nil)
				r := usage(2)
				c.edit(&r)
				err = h.RecordUsage(t.Context(), workload("orders"), r)
				var bad *broker.Invalid
				if errors.As(err, &bad) != (c.field != "") || c.field != "" && bad.Field != c.field || c.field == "" && err != nil {
					t.Errorf("got %v", err)
				}
				used, lost := h.audit.of(broker.EventGrantUsed), h.audit.of(broker.EventUsageLost)
				if c.field != "" && len(used)+len(lost) != 0 || c.field == "" && (len(used) != len(r.Grants) || len(lost) != 1) {
					t.Errorf("%d and %d events", len(used), len(lost))
				}
			})
		})
	}
}

// TestRecordUsageWithoutALog asks for the report again, and records all of it then.
func TestRecordUsageWithoutALog(t *testing.T) {
	inBubble(t, func(h *harness) {
		h.audit.break_(errors.New("the disk is full"))
		err := h.RecordUsage(h.t.Context(), workload("orders"), usage(2))
		want(h.t, err, broker.ErrAudit)
		h.audit.break_(nil)
		if err := h.RecordUsage(h.t.Context(), workload("orders"), usage(2)); err != nil {
			h.t.Fatal(err)
		}
		events := h.audit.of(broker.EventGrantUsed)
		if ids := slices.CompactFunc(events, func(a, b broker.Event) bool { return a.Grant == b.Grant }); len(ids) != 2 {
			h.t.Errorf("got %+v", events)
		}
	})
}
