package storetest

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/errandhq/errand/broker"
)

// Machine makes random calls, one after the other, and compares each answer with a model's. The
// time that passes between them stays under broker.Margin, so nothing goes away.
func Machine(t *testing.T, b Backend) {
	runCases(t, b, []testCase{{"machine", func(b *bench) {
		// rapid must not see that this is a *testing.T: it would ask for the deadline, which
		// nobody may do in a bubble.
		rapid.Check(struct{ testing.TB }{b.T}, func(rt *rapid.T) { newMachine(rt, b).run() })
	}}})
}

// machine makes the calls.
type machine struct {
	*rapid.T
	bench    *bench
	store    broker.Store
	model    *model
	requests []broker.GrantRequest // made so far
	spent    time.Duration
	ids      int // made so far
}

// budget is the most time that one run of the machine may let pass.
const budget = broker.Margin - 5*time.Second

func newMachine(rt *rapid.T, b *bench) *machine {
	m := &machine{T: rt, bench: b, store: b.New(b.T, b.shards)}
	update, err := first(b.Context(), m.store, broker.Position{})
	if err != nil {
		rt.Fatal(err)
	}
	m.model = newModel(update.Position.Epoch, b.shards)
	return m
}

func (m *machine) run() {
	m.Repeat(map[string]func(*rapid.T){
		"":          func(*rapid.T) { m.compareFeed(broker.Position{}) },
		"begin":     func(*rapid.T) { m.grant(m.drawBegin()) },
		"begin too": func(*rapid.T) { m.grant(m.drawBegin()) }, // twice as likely
		"join":      func(*rapid.T) { m.grant(m.drawJoining()) },
		"issue":     func(*rapid.T) { m.grant(m.drawIssue()) },
		"issue too": func(*rapid.T) { m.grant(m.drawIssue()) },
		"repeat":    func(*rapid.T) { m.repeat() },
		"heartbeat": func(*rapid.T) { m.heartbeat() },
		"end":       func(*rapid.T) { m.end(m.drawEnds()) },
		"sweep":     func(*rapid.T) { m.sweep() },
		"look up":   func(*rapid.T) { m.lookup() },
		"list":      func(*rapid.T) { m.list() },
		"list too":  func(*rapid.T) { m.list() },
		"watch":     func(*rapid.T) { m.compareFeed(m.drawPosition()) },
		"advance":   func(*rapid.T) { m.advance() },
	})
}

// now is the store's time.
func (m *machine) now() time.Time {
	page, err := m.store.List(m.bench.Context(), broker.Query{Limit: 1})
	if err != nil {
		m.Fatalf("List: %v", err)
	}
	return page.Now
}

// agree makes a call of the store and the same of the model, and wants the same answer. The model's
// call happens when the store's may have: at a time that the answer tells, or just before or after.
// In a bubble these are all the same.
func agree[T any](m *machine, what string, call func() (T, []time.Time), same func(*model, time.Time) T) {
	lo := m.now()
	got, told := call()
	moments := append(told, lo, m.now())
	moments = slices.DeleteFunc(moments, func(t time.Time) bool { return t.IsZero() })
	var diff string
	for _, now := range slices.Compact(moments) {
		attempt := m.model.clone()
		if diff = difference(got, same(attempt, now)); diff == "" {
			m.model = attempt
			return
		}
	}
	m.Fatalf("%s at %s (-model +store):\n%s", what, moments[len(moments)-1], diff)
}

// id makes the rest of an ID. It is the same in each run that draws the same, so that rapid can find
// the shortest run that fails, but in no order.
func (m *machine) id(prefix string, shard int) string {
	m.ids++
	sum := sha256.Sum256([]byte(strconv.Itoa(m.ids)))
	return fmt.Sprintf("%s_%02d%s", prefix, shard, strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:26]))
}

func (m *machine) newTask(shard int) broker.TaskID { return broker.TaskID(m.id("tsk", shard)) }

func (m *machine) newGrant(shard int) broker.GrantID { return broker.GrantID(m.id("gnt", shard)) }

// granted is the outcome of a Grant.
type granted struct {
	Reply broker.GrantReply
	Err   error
}

func (m *machine) grant(req broker.GrantRequest) {
	m.requests = append(m.requests, req)
	agree(m, "Grant", func() (granted, []time.Time) {
		reply, err := m.store.Grant(m.bench.Context(), req)
		return granted{reply, err}, []time.Time{reply.Now}
	}, func(model *model, now time.Time) granted {
		reply, err := model.Grant(req, now)
		return granted{reply, err}
	})
}

// repeat makes a call again, as it was or, of a begin with a key, with new IDs.
func (m *machine) repeat() {
	if len(m.requests) == 0 {
		m.Skip("nothing to repeat")
	}
	req := rapid.SampledFrom(m.requests).Draw(m.T, "request")
	if req.Begin != nil && req.Begin.Key != "" && rapid.Bool().Draw(m.T, "new IDs") {
		req.Task = m.newTask(req.Task.Shard())
		req.Grants = slices.Clone(req.Grants)
		for i := range req.Grants {
			req.Grants[i].ID = m.newGrant(req.Task.Shard())
		}
	}
	m.grant(req)
}

func (m *machine) heartbeat() {
	for range rapid.IntRange(1, 3).Draw(m.T, "beats") {
		beat := broker.Beat{Task: m.drawTask(), Workload: m.drawWorkload(), Note: rapid.SampledFrom([]string{"", "", "n1", "n2"}).Draw(m.T, "note")}
		beat.Stream = rapid.SampledFrom([]broker.StreamID{"", "", "s1", "s2"}).Draw(m.T, "stream")
		beat.Attach = rapid.Bool().Draw(m.T, "attaches")
		beat.Lost = rapid.IntRange(0, 2).Draw(m.T, "lost") == 2
		beat.Adopt = rapid.IntRange(0, 3).Draw(m.T, "adopts") == 3
		beat.Holder = m.drawHolder()
		agree(m, "Heartbeat", func() (broker.Pulse, []time.Time) {
			pulses, err := m.store.Heartbeat(m.bench.Context(), []broker.Beat{beat})
			if err != nil || len(pulses) != 1 {
				m.Fatalf("Heartbeat: %d pulses, error %v", len(pulses), err)
			}
			return pulses[0], []time.Time{pulses[0].Now}
		}, func(model *model, now time.Time) broker.Pulse { return model.Heartbeat(beat, now) })
	}
}

func (m *machine) end(ends []broker.Ending) {
	lo := m.now()
	replies, err := m.store.End(m.bench.Context(), ends)
	if err != nil || len(replies) != len(ends) {
		m.Fatalf("End: %d replies to %d targets, error %v", len(replies), len(ends), err)
	}
	hi := m.now()
	// Each target happens by itself, so each has a moment of its own.
	for i, e := range ends {
		moments := slices.Compact([]time.Time{lo, hi})
		if at := replies[i].Receipt.Ended; at.After(lo) && at.Before(hi) {
			moments = append(moments, at)
		}
		diff := ""
		for _, now := range moments {
			attempt := m.model.clone()
			want := attempt.End(e, now)
			if diff = m.differs(e, replies[i], want); diff == "" {
				m.model = attempt
				break
			}
		}
		if diff != "" {
			m.Fatalf("End of a %s at %s (-model +store):\n%s", e.Kind, hi, diff)
		}
	}
}

// differs compares two replies, less what is a store's own business: whether it is durable, how much
// more than the end itself its position has, and what it says of the state of something stateless.
func (m *machine) differs(e broker.Ending, got, want broker.EndReply) string {
	for shard, n := range want.Receipt.Feed.Numbers {
		mine := e.Kind == broker.TargetTask && shard == e.Task.Shard() || e.Kind == broker.TargetGrant && shard == e.Grant.Shard()
		everywhere := e.Kind != broker.TargetTask && e.Kind != broker.TargetGrant
		if p := got.Receipt.Feed; p.Epoch != m.model.epoch || len(p.Numbers) != m.bench.shards || (mine || everywhere) && p.Numbers[shard] < n {
			return difference(got, want)
		}
	}
	got.Receipt.Feed, want.Receipt.Feed = broker.Position{}, broker.Position{}
	got.Receipt.Durable, want.Receipt.Durable = false, false
	if (got.Audiences == nil) != (want.Audiences == nil) { // none and all are not the same
		return fmt.Sprintf("audiences: got %#v; want %#v", got.Audiences, want.Audiences)
	}
	if e.Kind != broker.TargetTask && e.Kind != broker.TargetGrant {
		got.Receipt.State, want.Receipt.State = "", ""
	}
	return difference(got, want)
}

func (m *machine) sweep() {
	page := m.compareList(broker.Query{Due: true})
	if len(page.Tasks) == 0 {
		m.Skip("nothing is due")
	}
	var ends []broker.Ending
	for _, task := range page.Tasks {
		ends = append(ends, due(task.ID))
	}
	m.end(ends)
}

func (m *machine) lookup() {
	ref := broker.Ref{Task: m.drawTask()}
	if g := m.drawGrant(); rapid.Bool().Draw(m.T, "a grant") {
		ref = broker.Ref{Grant: g}
	}
	type outcome struct {
		Record broker.Record
		Err    error
	}
	agree(m, "Lookup", func() (outcome, []time.Time) {
		record, err := m.store.Lookup(m.bench.Context(), ref)
		return outcome{record, err}, []time.Time{record.Now}
	}, func(model *model, now time.Time) outcome {
		record := broker.Record{Now: now}
		if g := model.grant(ref.Grant); g != nil {
			record.Grant, ref.Task = g.Grant, g.Task
		}
		t := model.task(ref.Task)
		if t == nil {
			return outcome{Err: broker.ErrNotFound}
		}
		record.Task, record.Control = model.view(t, now), model.version(t.Task.Shard())
		return outcome{Record: record}
	})
}

func (m *machine) list() {
	q := broker.Query{Grants: rapid.Bool().Draw(m.T, "grants"), Limit: rapid.IntRange(0, 4).Draw(m.T, "limit")}
	switch rapid.SampledFrom([]string{"", "due", "of", "below", "below", "ref", "ended"}).Draw(m.T, "which") {
	case "due":
		q.Grants, q.Due = false, true
	case "of":
		q.Of = m.drawTask()
	case "below":
		q.Below = m.drawTask()
	case "ref":
		a, _ := everything()
		q.Ref = a.Ref
	case "ended":
		q.Grants, q.Ended = false, broker.EventRange{From: "evt_e", Until: "evt_t"}
	}
	if rapid.Bool().Draw(m.T, "of one") {
		q.Workload = m.drawWorkload()
	}
	if rapid.Bool().Draw(m.T, "later page") {
		q.After = string(m.drawTask())
		if g := m.model.grant(m.drawGrant()); q.Grants && g != nil {
			q.After = broker.PlaceOf(g.Grant).String()
		}
	}
	m.compareList(q)
}

func (m *machine) compareList(q broker.Query) broker.Page {
	var page broker.Page
	agree(m, "List", func() (broker.Page, []time.Time) {
		var err error
		if page, err = m.store.List(m.bench.Context(), q); err != nil {
			m.Fatalf("List: %v", err)
		}
		return page, []time.Time{page.Now}
	}, func(model *model, now time.Time) broker.Page { return model.List(q, now) })
	return page
}

func (m *machine) compareFeed(from broker.Position) {
	agree(m, "Watch", func() (broker.Update, []time.Time) {
		update, err := first(m.bench.Context(), m.store, from)
		if err != nil {
			m.Fatalf("Watch from %v: %v", from, err)
		}
		update.Age = 0
		sortEntries(update.Entries)
		return update, []time.Time{update.Now}
	}, func(model *model, now time.Time) broker.Update {
		return broker.Update{Position: model.position(), Entries: model.entries(from, now), Controls: model.controls(now), Now: now}
	})
}

func (m *machine) advance() {
	d := rapid.SampledFrom([]time.Duration{50, 100, 200, 300, 1000}).Draw(m.T, "ms") * time.Millisecond
	if m.spent += d; m.spent > budget {
		m.Skip("the time is spent")
	}
	m.bench.Advance(d)
}

func (m *machine) drawWorkload() spiffeid.ID {
	// Mostly the one: strangers meet ErrNotFound, which is soon boring.
	return rapid.SampledFrom([]spiffeid.ID{alice(), alice(), alice(), bob()}).Draw(m.T, "workload")
}

// drawTask draws a task that has begun, and now and then one that has not.
func (m *machine) drawTask() broker.TaskID {
	ids := []broker.TaskID{m.newTask(0)}
	for _, t := range m.model.tasks {
		ids = append(ids, t.Task)
	}
	return ids[rapid.IntRange(0, len(ids)-1).Draw(m.T, "task")]
}

func (m *machine) drawHolder() int {
	return rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2, 3}).Draw(m.T, "holder")
}

// drawJoining draws a join that may well succeed: for all else, drawBegin does.
func (m *machine) drawJoining() broker.GrantRequest {
	req := m.drawBegin()
	req.Begin.Parent, req.Begin.Key, req.Begin.Deadline, req.Quota = m.drawTask(), "", time.Hour, broker.Quota{}
	req.Task, req.Grants = m.newTask(req.Begin.Parent.Shard()), nil
	req.Control = m.model.version(req.Task.Shard())
	m.drawJoin(req.Begin)
	return req
}

// drawJoin makes a begin below a task a join, mostly by a delegation of who has that task.
func (m *machine) drawJoin(b *broker.Beginning) {
	b.Join = &broker.Join{
		Delegation: rapid.SampledFrom([]broker.DelegationID{"dlg_a", "dlg_b", "dlg_c"}).Draw(m.T, "delegation"),
		Delegator:  m.drawWorkload(),
		Until:      m.now().Add(m.drawMillis("until", 3_600_000, 3_600_000, 300, -1000)),
	}
	if parent := m.model.task(b.Parent); parent != nil && rapid.IntRange(0, 4).Draw(m.T, "foreign") > 0 {
		b.Join.Delegator = parent.Workload
	}
	b.Delegators = rapid.SampledFrom([][]spiffeid.ID{nil, {alice()}, {alice(), bob()}}).Draw(m.T, "delegators")
}

func (m *machine) drawGrant() broker.GrantID {
	ids := []broker.GrantID{m.newGrant(0)}
	for _, g := range m.model.grants {
		ids = append(ids, g.ID)
	}
	return ids[rapid.IntRange(0, len(ids)-1).Draw(m.T, "grant")]
}

func (m *machine) drawLock() broker.LockID {
	ids := []broker.LockID{broker.LockID("lck_" + m.id("", 0)[3:])}
	for _, l := range m.model.locks {
		ids = append(ids, l.ID)
	}
	return ids[rapid.IntRange(0, len(ids)-1).Draw(m.T, "lock")]
}

func (m *machine) drawMillis(label string, from ...time.Duration) time.Duration {
	return rapid.SampledFrom(from).Draw(m.T, label) * time.Millisecond
}

func (m *machine) drawBegin() broker.GrantRequest {
	shard := rapid.IntRange(0, m.bench.shards-1).Draw(m.T, "shard")
	req := broker.GrantRequest{
		Workload: m.drawWorkload(),
		Begin: &broker.Beginning{
			Name: "work", Purpose: "why", Ceiling: broker.Ceiling{Audiences: broker.Audiences{"a"}, Scopes: broker.Scopes{"s"}},
			Lease:    m.drawMillis("lease", 60_000, 60_000, 200, 500, 900),
			Deadline: m.drawMillis("deadline", 3_600_000, 3_600_000, 1000, 3300),
			Key:      rapid.SampledFrom([]string{"", "", "", "k1", "k2"}).Draw(m.T, "key"),
			Digest:   [32]byte{rapid.SampledFrom([]byte{1, 1, 1, 2}).Draw(m.T, "digest")},
		},
	}
	req.Begin.Presence = rapid.Bool().Draw(m.T, "presence")
	if rapid.Bool().Draw(m.T, "attributes") {
		req.Begin.Attributes, req.Begin.Ceiling.Details = everything()
	}
	if rapid.Bool().Draw(m.T, "below") {
		req.Begin.Parent = m.drawTask()
		shard = req.Begin.Parent.Shard()
		if rapid.Bool().Draw(m.T, "join") {
			m.drawJoin(req.Begin)
		}
	}
	req.Task = m.newTask(shard)
	m.drawRest(&req)
	return req
}

func (m *machine) drawIssue() broker.GrantRequest {
	req := broker.GrantRequest{Workload: m.drawWorkload(), Task: m.drawTask()}
	m.drawRest(&req)
	return req
}

// drawRest adds what begins and issues have in common.
func (m *machine) drawRest(req *broker.GrantRequest) {
	shard := req.Task.Shard()
	least := 0
	if req.Begin == nil {
		least = 1
	}
	for range rapid.IntRange(least, 2).Draw(m.T, "grants") {
		ask := broker.Asked{
			ID: m.newGrant(shard), Audience: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(m.T, "audience"),
			Scopes: broker.Scopes{"s"}, Binding: broker.BindCertificate, Thumbprint: "t", Decision: broker.NewDecisionID(),
			Life: m.drawMillis("life", 60_000, 1000, 2000, 3000),
		}
		if rapid.Bool().Draw(m.T, "details") {
			_, ask.Details = everything()
		}
		if rapid.Bool().Draw(m.T, "certificate") {
			ask.NotAfter = m.now().Add(m.drawMillis("not after", 1500, 2500, 3_600_000))
		}
		req.Grants = append(req.Grants, ask)
	}
	req.Control = m.model.version(shard)
	if req.Control > 0 && rapid.IntRange(0, 4).Draw(m.T, "behind") == 4 {
		req.Control--
	}
	limit := rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3})
	req.Quota = broker.Quota{Tasks: limit.Draw(m.T, "tasks"), Grants: limit.Draw(m.T, "grants"), Children: limit.Draw(m.T, "children")}
}

func (m *machine) drawEnds() []broker.Ending {
	ends := make([]broker.Ending, rapid.IntRange(1, 3).Draw(m.T, "targets"))
	for i := range ends {
		e := &ends[i]
		*e = broker.Ending{
			Kind: rapid.SampledFrom([]broker.TargetKind{
				broker.TargetTask, broker.TargetTask, broker.TargetTask, broker.TargetGrant, broker.TargetSelector,
				broker.TargetKey, broker.TargetAll, broker.TargetLock, broker.TargetLift,
			}).Draw(m.T, "kind"),
			Event: broker.NewEventID(), Reason: "because",
			Cause: rapid.SampledFrom([]broker.Cause{broker.CauseCaller, broker.CauseCaller, broker.CauseAudit}).Draw(m.T, "cause"),
			State: rapid.SampledFrom([]broker.State{broker.Completed, broker.Failed, broker.Revoked}).Draw(m.T, "state"),
		}
		switch e.Kind {
		case broker.TargetTask:
			e.Task, e.IfDue = m.drawTask(), rapid.IntRange(0, 3).Draw(m.T, "if due") == 3
			e.Holder = m.drawHolder()
			if !e.IfDue && rapid.IntRange(0, 2).Draw(m.T, "lost") == 2 {
				e.Lost = m.now().Add(m.drawMillis("left", 60_000, 1000, -60_000, 3_600_000))
			}
		case broker.TargetGrant:
			e.Grant = m.drawGrant()
		case broker.TargetSelector:
			e.Selector = broker.Selector{Audience: "a"}
		case broker.TargetKey:
			e.Key = "kid"
		case broker.TargetLock:
			e.Lock = broker.Lock{
				ID: m.drawLock(), Selector: broker.Selector{Scope: "s"}, Reason: "because", Actor: "operator",
				Expires: m.now().Add(m.drawMillis("stands for", 500, 3_600_000)),
			}
		case broker.TargetLift:
			e.Lock.ID = m.drawLock()
		}
		if rapid.Bool().Draw(m.T, "of a workload") {
			e.Workload = m.drawWorkload()
		}
	}
	return ends
}

// drawPosition draws one that a reader may have been at.
func (m *machine) drawPosition() broker.Position {
	p := m.model.position()
	for shard, n := range p.Numbers {
		p.Numbers[shard] = rapid.Uint64Range(0, n).Draw(m.T, "number")
	}
	return p
}
