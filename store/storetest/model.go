package storetest

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// model is a store that is written to be obviously right: it keeps everything for ever, in lists,
// and works out the answer to each question from all that has happened. It has its own rule of who
// is alive, counts by counting, and forgets nothing, so it is good for less time than broker.Margin.
//
// Its values are never written in place, but for the lists of tasks and grants: clone copies those.
type model struct {
	epoch  uint64
	tasks  []modelTask
	grants []modelGrant
	feeds  [][]modelChange // by shard; the first has number 1
	locks  []modelLock
}

type modelTask struct {
	broker.GrantRequest // that began it
	begun, lapse        time.Time
	stream              broker.StreamID
	deadline            time.Time
	holder              int
	note                string
	noted               time.Time
	end                 *broker.Receipt // nil until an end was written
	lost                bool            // known by its end alone
}

type modelGrant struct {
	broker.Grant
	end *broker.Receipt
}

// modelChange is what a shard has numbered.
type modelChange struct {
	entry   *broker.Entry // nil for a lock and a lift
	control bool
}

type modelLock struct {
	broker.Lock
	locked, lifted *broker.Receipt
}

func newModel(epoch uint64, shards int) *model {
	return &model{epoch: epoch, feeds: make([][]modelChange, shards)}
}

func (m *model) clone() *model {
	out := &model{epoch: m.epoch, tasks: slices.Clone(m.tasks), grants: slices.Clone(m.grants), locks: slices.Clone(m.locks)}
	for _, feed := range m.feeds {
		out.feeds = append(out.feeds, slices.Clone(feed))
	}
	return out
}

func (m *model) task(id broker.TaskID) *modelTask {
	for i := range m.tasks {
		if m.tasks[i].Task == id {
			return &m.tasks[i]
		}
	}
	return nil
}

func (m *model) grant(id broker.GrantID) *modelGrant {
	for i := range m.grants {
		if m.grants[i].ID == id {
			return &m.grants[i]
		}
	}
	return nil
}

// fate says how and when a task ended, as of now. A task dies of itself or of the one above,
// whichever comes first; of itself when both come at once.
func (m *model) fate(t *modelTask, now time.Time) (state broker.State, cause broker.Cause, at time.Time) {
	lapse := t.lapse
	switch {
	case t.end != nil:
		state, cause, at = t.end.State, t.end.Cause, t.end.Ended
	case !t.deadline.After(lapse) && !now.Before(t.deadline):
		state, cause, at = broker.Expired, broker.CauseDeadline, t.deadline
	case lapse.Before(t.deadline) && !now.Before(lapse):
		state, cause, at = broker.Lapsed, broker.CauseLease, lapse
		if t.Begin.Presence && t.stream == "" {
			cause = broker.CausePresence
		}
	default:
		state = broker.Active
	}
	if t.Begin.Parent == "" {
		return state, cause, at
	}
	above, _, then := m.fate(m.task(t.Begin.Parent), now)
	if above != broker.Active && (state == broker.Active || then.Before(at)) {
		return broker.Canceled, broker.CauseParent, then
	}
	return state, cause, at
}

// self reports whether a task is over by itself, whatever is with those above.
func (m *model) self(t *modelTask, now time.Time) bool {
	return t.end != nil || !now.Before(t.lapse) || !now.Before(t.deadline)
}

// view is the task as the store must show it.
func (m *model) view(t *modelTask, now time.Time) broker.Task {
	out := broker.Task{
		ID: t.Task, Workload: t.Workload, Name: t.Begin.Name, Purpose: t.Begin.Purpose, Ceiling: t.Begin.Ceiling, Attributes: t.Begin.Attributes,
		Begun: t.begun, Lease: t.Begin.Lease, LeaseEnd: t.lapse, Deadline: t.deadline, Path: m.path(t.Task),
		Note: t.note, Noted: t.noted, Presence: t.Begin.Presence, Stream: t.stream,
		Holder: t.holder, Delegators: t.Begin.Delegators,
	}
	out.State, out.Cause, out.Ended = m.fate(t, now)
	return out
}

func (m *model) path(id broker.TaskID) []broker.TaskID {
	if id == "" {
		return nil
	}
	return append(m.path(m.task(id).Begin.Parent), id)
}

// under reports whether a task is another one or below it.
func (m *model) under(id, top broker.TaskID) bool { return slices.Contains(m.path(id), top) }

func (m *model) number(shard int) uint64 { return uint64(len(m.feeds[shard])) }

func (m *model) position() broker.Position {
	p := broker.Position{Epoch: m.epoch}
	for shard := range m.feeds {
		p.Numbers = append(p.Numbers, m.number(shard))
	}
	return p
}

// version is the number of a shard's newest control change.
func (m *model) version(shard int) uint64 {
	version := uint64(0)
	for i, change := range m.feeds[shard] {
		if change.control {
			version = uint64(i) + 1
		}
	}
	return version
}

func (m *model) announce(shard int, e broker.Entry) {
	e.Shard, e.Number = shard, m.number(shard)+1
	control := e.Denial.Kind == broker.DenySelector || e.Denial.Kind == broker.DenyAll
	m.feeds[shard] = append(m.feeds[shard], modelChange{entry: &e, control: control})
}

// entries are all that a reader at a position must get.
func (m *model) entries(from broker.Position, now time.Time) []broker.Entry {
	var out []broker.Entry
	for shard, feed := range m.feeds {
		for _, change := range feed {
			e := change.entry
			if e != nil && now.Before(e.Until) && (from.IsZero() || e.Number > from.Numbers[shard]) {
				out = append(out, *e)
			}
		}
	}
	return out
}

func (m *model) controls(now time.Time) []broker.Control {
	var out []broker.Control
	for shard, feed := range m.feeds {
		c := broker.Control{Version: m.version(shard)}
		for _, l := range m.locks {
			if l.lifted == nil && now.Before(l.Expires) {
				c.Locks = append(c.Locks, l.Lock)
			}
		}
		for _, change := range feed {
			if change.control && change.entry != nil && now.Before(change.entry.Until) {
				c.Denials = append(c.Denials, *change.entry)
			}
		}
		out = append(out, c)
	}
	return out
}

// Grant is the port's, with the time at which it happens.
func (m *model) Grant(req broker.GrantRequest, now time.Time) (broker.GrantReply, error) {
	if first, grants, err := m.madeBefore(req); err != nil || first != nil {
		return m.replay(first, grants, now, err)
	}
	on := req.Task
	if req.Begin != nil {
		on = req.Begin.Parent
	}
	if err := m.check(req, on, now); err != nil {
		return broker.GrantReply{}, err
	}
	deadline := time.Time{}
	if req.Begin != nil {
		deadline = now.Add(req.Begin.Deadline)
	}
	if above := m.task(on); above != nil && (req.Begin == nil || above.deadline.Before(deadline)) {
		deadline = above.deadline
	}
	grants, err := m.draft(req, deadline, now)
	if err != nil {
		return broker.GrantReply{}, err
	}
	if req.Begin != nil {
		m.tasks = append(m.tasks, modelTask{GrantRequest: req, begun: now, lapse: now.Add(req.Begin.Lease), deadline: deadline, holder: 1})
		if t := &m.tasks[len(m.tasks)-1]; req.Begin.Presence && req.Begin.Lease > broker.AttachTime {
			t.lapse = now.Add(broker.AttachTime)
		}
	}
	for _, g := range grants {
		m.grants = append(m.grants, modelGrant{Grant: g})
	}
	return broker.GrantReply{Task: m.view(m.task(req.Task), now), Grants: grants, Now: now, Control: m.version(req.Task.Shard())}, nil
}

// madeBefore finds the task and the grants of a call that this one repeats.
func (m *model) madeBefore(req broker.GrantRequest) (*modelTask, []broker.Asked, error) {
	if req.Begin == nil {
		if len(req.Grants) > 0 && m.grant(req.Grants[0].ID) != nil {
			return m.task(req.Task), req.Grants, nil // the machine repeats whole calls only
		}
		return nil, nil, nil
	}
	t := m.task(req.Task)
	for i := range m.tasks {
		other := &m.tasks[i]
		if req.Begin.Key != "" && other.Begin.Key == req.Begin.Key && other.Workload == req.Workload && other.Task.Shard() == req.Task.Shard() && !other.neverWas() {
			t = other
		}
	}
	switch {
	case t == nil:
		return nil, nil, nil
	case t.lost:
		return nil, nil, m.ended(t, time.Time{})
	case t.Begin.Digest != req.Begin.Digest || t.Workload != req.Workload:
		return nil, nil, broker.ErrMismatch
	}
	return t, t.Grants, nil
}

// neverWas reports whether a task was never handed out: what was used for it can be used again.
func (t *modelTask) neverWas() bool {
	return t.end != nil && (t.end.Cause == broker.CauseAudit || t.end.Cause == broker.CauseSigning)
}

// used reports whether a task has joined by a delegation that is not over.
func (m *model) used(shard int, join broker.Join, now time.Time) bool {
	for i := range m.tasks {
		t := &m.tasks[i]
		if j := t.Begin.Join; j != nil && j.Delegation == join.Delegation && t.Task.Shard() == shard && now.Before(j.Until) && !t.neverWas() {
			return true
		}
	}
	return false
}

func (m *model) replay(t *modelTask, asks []broker.Asked, now time.Time, err error) (broker.GrantReply, error) {
	if err != nil {
		return broker.GrantReply{}, err
	}
	if err := m.ended(t, now); err != nil {
		return broker.GrantReply{}, err
	}
	task := m.view(t, now)
	reply := broker.GrantReply{Task: task, Now: now, Control: m.version(task.ID.Shard()), Replayed: true}
	for _, ask := range asks {
		if g := m.grant(ask.ID); now.Before(g.Expires) {
			reply.Grants = append(reply.Grants, g.Grant)
		}
	}
	return reply, nil
}

func (m *model) ended(t *modelTask, now time.Time) error {
	if state, cause, at := m.fate(t, now); state != broker.Active {
		return &broker.Ended{Task: t.Task, State: state, Cause: cause, At: at}
	}
	return nil
}

// check is everything that can be wrong before lives are counted. The task that the request builds
// on is "" for a root.
func (m *model) check(req broker.GrantRequest, on broker.TaskID, now time.Time) error {
	shard, whose := req.Task.Shard(), req.Workload
	var join *broker.Join
	if req.Begin != nil && req.Begin.Join != nil {
		join, whose = req.Begin.Join, req.Begin.Join.Delegator
	}
	if on != "" || join != nil {
		t := m.task(on)
		if t == nil || t.Workload != whose || t.Task.Shard() != shard {
			return broker.ErrNotFound
		}
		if err := m.ended(t, now); err != nil {
			return err
		}
	}
	if join != nil && m.used(shard, *join, now) {
		return broker.ErrUsed
	}
	if req.Begin != nil && len(m.path(on))+1 > broker.MaxDepth {
		return broker.ErrInvalid
	}
	if m.version(shard) > req.Control {
		return &broker.Behind{Shard: shard, Version: m.version(shard)}
	}
	tasks, children, grants := m.live(req.Workload, shard, on, now)
	switch q := req.Quota; {
	case req.Begin != nil && q.Tasks > 0 && tasks+1 > q.Tasks:
		return &broker.QuotaExceeded{What: "live tasks", Limit: q.Tasks}
	case req.Begin != nil && on != "" && q.Children > 0 && children+1 > q.Children:
		return &broker.QuotaExceeded{What: "live children", Limit: q.Children}
	case len(req.Grants) > 0 && q.Grants > 0 && grants+len(req.Grants) > q.Grants:
		return &broker.QuotaExceeded{What: "live grants", Limit: q.Grants}
	}
	return nil
}

// live counts what a workload has in a shard, and the children of one task.
func (m *model) live(w spiffeid.ID, shard int, parent broker.TaskID, now time.Time) (tasks, children, grants int) {
	for i := range m.tasks {
		t := &m.tasks[i]
		if m.self(t, now) || t.Task.Shard() != shard {
			continue
		}
		if t.Workload == w {
			tasks++
		}
		if t.Begin.Parent == parent {
			children++
		}
	}
	for _, g := range m.grants {
		if g.Workload == w && g.ID.Shard() == shard && now.Before(g.Expires) {
			grants++
		}
	}
	return tasks, children, grants
}

func (m *model) draft(req broker.GrantRequest, deadline, now time.Time) ([]broker.Grant, error) {
	var grants []broker.Grant
	for _, ask := range req.Grants {
		issued := time.Unix(now.Unix(), 0).UTC()
		expires := issued.Add(ask.Life)
		for _, bound := range []time.Time{deadline, ask.NotAfter} {
			if !bound.IsZero() && bound.Before(expires) {
				expires = bound
			}
		}
		expires = time.Unix(expires.Unix(), 0).UTC()
		if expires.Before(issued.Add(broker.MinTokenLife)) {
			return nil, broker.ErrTooShort
		}
		grants = append(grants, broker.Grant{
			ID: ask.ID, Task: req.Task, Workload: req.Workload, Audience: ask.Audience, Scopes: ask.Scopes, Details: ask.Details,
			Binding: ask.Binding, Thumbprint: ask.Thumbprint, Decision: ask.Decision,
			Issued: issued, Expires: expires, Epoch: m.epoch, Number: m.number(req.Task.Shard()),
		})
	}
	return grants, nil
}

// Heartbeat answers one beat.
func (m *model) Heartbeat(beat broker.Beat, now time.Time) broker.Pulse {
	t := m.task(beat.Task)
	if t == nil || t.Workload != beat.Workload {
		return broker.Pulse{Now: now, Err: broker.ErrNotFound}
	}
	bound := t.Begin.Presence
	switch {
	case m.ended(t, now) != nil:
	case beat.Holder != 0 && beat.Holder != t.holder:
	case beat.Adopt:
		t.holder, t.stream, t.lapse = t.holder+1, "", now.Add(t.Begin.Lease)
		if bound && t.Begin.Lease > broker.AttachTime {
			t.lapse = now.Add(broker.AttachTime)
		}
		if beat.Note != "" {
			t.note, t.noted = beat.Note, now
		}
	case beat.Lost:
		if bound && beat.Stream != "" && beat.Stream == t.stream {
			t.stream = ""
			if t.lapse.After(now.Add(broker.PresenceGrace)) {
				t.lapse = now.Add(broker.PresenceGrace)
			}
		}
	default:
		if bound && beat.Attach && beat.Stream != "" {
			t.stream = beat.Stream
		}
		if !bound || beat.Stream != "" && t.stream == beat.Stream {
			t.lapse = now.Add(t.Begin.Lease)
		}
		if beat.Note != "" {
			t.note, t.noted = beat.Note, now
		}
	}
	return broker.Pulse{Task: m.view(t, now), Now: now}
}
