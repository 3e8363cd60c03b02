package storetest

import (
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// List answers a query.
func (m *model) List(q broker.Query, now time.Time) broker.Page {
	after, err := broker.ParsePlace(q.After)
	if err != nil {
		panic(err) // the machine brings cursors alone
	}
	page := broker.Page{Now: now}
	for i := range m.tasks {
		t := &m.tasks[i]
		if !q.Grants && m.wanted(q, t, now) && (broker.Place{Task: t.Task}).Compare(after) > 0 {
			page.Tasks = append(page.Tasks, m.view(t, now))
		}
	}
	for _, g := range m.grants {
		t := m.task(g.Task)
		if q.Grants && m.wanted(q, t, now) && broker.PlaceOf(g.Grant).Compare(after) > 0 {
			page.Grants = append(page.Grants, broker.Record{Task: m.view(t, now), Grant: g.Grant})
		}
	}
	slices.SortFunc(page.Tasks, func(x, y broker.Task) int { return broker.Place{Task: x.ID}.Compare(broker.Place{Task: y.ID}) })
	slices.SortFunc(page.Grants, func(x, y broker.Record) int { return broker.PlaceOf(x.Grant).Compare(broker.PlaceOf(y.Grant)) })
	if q.Limit > 0 && len(page.Tasks) > q.Limit {
		page.Tasks = page.Tasks[:q.Limit]
		page.Next = broker.Place{Task: page.Tasks[q.Limit-1].ID}.String()
	}
	if q.Limit > 0 && len(page.Grants) > q.Limit {
		page.Grants = page.Grants[:q.Limit]
		page.Next = broker.PlaceOf(page.Grants[q.Limit-1].Grant).String()
	}
	return page
}

// wanted reports whether a task is of those that a query selects.
func (m *model) wanted(q broker.Query, t *modelTask, now time.Time) bool {
	ref := t.Begin.Ref
	return (q.Workload.IsZero() || t.Workload == q.Workload) &&
		(q.Of == "" || t.Task == q.Of) &&
		(q.Below == "" || m.under(t.Task, q.Below)) &&
		(q.Ref == broker.TaskRef{} || ref.Kind == q.Ref.Kind && ref.ID == q.Ref.ID) &&
		(q.Ended == broker.EventRange{} || t.end != nil && q.Ended.Has(t.end.Event)) &&
		(!q.Due || t.end == nil && m.self(t, now))
}
