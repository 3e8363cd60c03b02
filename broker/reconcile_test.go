package broker_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

// witness is a store that replicas share, and its Board. It notes the event of every end that happens.
type witness struct {
	*memory.Store
	mu   sync.Mutex
	ends map[broker.EventID]broker.Receipt
}

func newWitness(t *testing.T, shards int) *witness {
	t.Helper()
	store, err := memory.New(memory.Config{Shards: shards})
	if err != nil {
		t.Fatal(err)
	}
	return &witness{Store: store, ends: map[broker.EventID]broker.Receipt{}}
}

func (w *witness) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	replies, err := w.Store.End(ctx, ends)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range replies {
		if r.Err == nil && r.Receipt.First && (r.Receipt.Task != "" || r.Receipt.Grant != "") {
			w.ends[r.Receipt.Event] = r.Receipt
		}
	}
	return replies, err
}

// count is how many ends there were.
func (w *witness) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.ends)
}

// missing returns the ends that are in none of the logs.
func (w *witness) missing(logs ...*recorder) (out []broker.Receipt) {
	there := map[broker.EventID]bool{}
	for _, log := range logs {
		log.mu.Lock()
		for _, e := range log.events {
			there[e.ID] = true
		}
		log.mu.Unlock()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, r := range w.ends {
		if !there[id] {
			out = append(out, r)
		}
	}
	return out
}

// under returns what the log has under an event's ID.
func (r *recorder) under(id broker.EventID) (out []broker.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.ID == id {
			out = append(out, e)
		}
	}
	return out
}

// reconciled returns what the log has for others.
func (r *recorder) reconciled() (out []broker.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Reconciled {
			out = append(out, e)
		}
	}
	return out
}

// mortal is what a replica has of a store until it is killed: then nothing of it gets through any more.
type mortal struct {
	*witness
	dead  atomic.Bool
	loses atomic.Bool // the answers to its ends
}

func (m *mortal) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	if m.dead.Load() {
		return nil, broker.ErrUnavailable
	}
	replies, err := m.witness.End(ctx, ends)
	if m.loses.Load() {
		return nil, broker.ErrUnconfirmed
	}
	return replies, err
}

func (m *mortal) Post(ctx context.Context, notes ...broker.BoardNote) error {
	if m.dead.Load() {
		return broker.ErrUnavailable
	}
	return m.witness.Post(ctx, notes...)
}

// replica is one that can be killed.
type replica struct {
	*harness
	store *mortal
	stop  func()
}

func startReplica(t *testing.T, store *witness) *replica {
	t.Helper()
	r := &replica{store: &mortal{witness: store}}
	r.harness, r.stop = startHarness(t, r.store, func(c *broker.Config) { c.Board = r.store })
	return r
}

// kill is kill -9: neither the store nor the log nor the other replicas hear of it again.
func (r *replica) kill() {
	r.store.dead.Store(true)
	r.audit.break_(broker.ErrAudit)
	r.stop()
}

// unrecorded has the replica do something whose events do not come into its log any more, and kills it.
func (r *replica) unrecorded(do func()) {
	r.audit.break_(broker.ErrAudit)
	do()
	r.kill()
}

// endings are the ways in which ends come about, with the actor that is known afterwards.
var endings = map[string]struct {
	actor string
	kind  broker.EventKind
	end   func(h *harness, b broker.Begun) error
}{
	"by its workload": {"", broker.EventTaskEnded, func(h *harness, b broker.Begun) error {
		_, err := h.tryEnd(report, b.Task.ID, broker.EndKey{})
		return err
	}},
	"by its end key": {"", broker.EventTaskEnded, func(h *harness, b broker.Begun) error {
		_, err := h.EndByKey(ctx, "192.0.2.1:1", workload(report).ID, b.Task.ID, broker.EndRequest{State: broker.Failed, Key: b.EndKey})
		return err
	}},
	"by its lease": {"errand", broker.EventTaskEnded, func(*harness, broker.Begun) error {
		time.Sleep(broker.DefaultLease + time.Second)
		return nil
	}},
	"by a source": {"", broker.EventTaskEnded, func(h *harness, b broker.Begun) error {
		_, err := h.endRef(jobEnded("uid"))
		return err
	}},
	"by an operator": {"", broker.EventTaskEnded, func(h *harness, b broker.Begun) error {
		_, err := h.Revoke(ctx, broker.Revocation{Task: b.Task.ID, Actor: "ada", Reason: "INC-1"})
		return err
	}},
	"its grant, by an operator": {"", broker.EventGrantRevoked, func(h *harness, b broker.Begun) error {
		_, err := h.Revoke(ctx, broker.Revocation{Grant: b.Tokens[0].Grant.ID, Actor: "ada", Reason: "INC-1"})
		return err
	}},
	"with many": {"", broker.EventTaskEnded, func(h *harness, b broker.Begun) error {
		_, err := h.RevokeAll(ctx, broker.Mass{Filter: broker.Filter{Ref: broker.TaskRef{Kind: "k8s/job", ID: "uid"}}, What: broker.WhatTasks, Actor: "ada", Reason: "INC-4711 leaked"})
		return err
	}},
	"with its trust domain": {"errand", broker.EventTaskEnded, func(h *harness, b broker.Begun) error {
		_, err := h.Withdraw(ctx, spiffeid.RequireTrustDomainFromString("prod"))
		return err
	}},
	"since its token could not be recorded": {workload(report).ID.String(), broker.EventGrantRevoked, func(h *harness, b broker.Begun) error {
		_, err := h.Issue(ctx, workload(report), b.Task.ID, broker.TokenRequest{Audience: "orders"})
		if err == nil {
			return fmt.Errorf("a token without a record")
		}
		return nil
	}},
}

// TestP12_AnEndIsRecordedForAKilledReplica: whatever has ended a task or a grant, when the replica that did it is killed
// before its audit log has that, another one, or the same started again, records it: once, in time, with what the
// store knows. What was recorded is not recorded again.
func TestP12_AnEndIsRecordedForAKilledReplica(t *testing.T) {
	for name, by := range endings {
		for _, shards := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s, %d", name, shards), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					store := newWitness(t, shards)
					one := startReplica(t, store)
					for range 3 {
						one.end(report, one.begin(report, withToken).Task.ID)
					}
					begun := one.begin(report, about("k8s/job", "uid"))
					time.Sleep(3 * time.Second)
					before := store.count()
					one.unrecorded(func() {
						if err := by.end(one.harness, begun); err != nil {
							t.Fatal(err)
						}
					})
					time.Sleep(time.Second)
					missing := store.missing(one.audit)
					if len(missing) != 1 || store.count() != before+1 {
						t.Fatalf("%d ends, of which these are not recorded: %+v", store.count()-before, missing)
					}
					two := newHarness(t, store, func(c *broker.Config) { c.Board = store })
					time.Sleep(broker.RecordBound - 15*time.Second)
					ends := func() []broker.Event { // a trust domain is also withdrawn by a selector
						return slices.DeleteFunc(two.audit.reconciled(), func(e broker.Event) bool { return e.Kind == broker.EventRevoked })
					}
					checkReconciled(t, ends(), missing[0], by.kind, by.actor, begun.Task)
					time.Sleep(2 * broker.RecordBound)
					if n := len(ends()); n != 1 {
						t.Errorf("%d ends were recorded for another one in the end", n)
					}
				})
			})
		}
	}
}

func checkReconciled(t *testing.T, events []broker.Event, r broker.Receipt, kind broker.EventKind, actor string, task broker.Task) {
	t.Helper()
	if len(events) != 1 {
		t.Fatalf("recorded for the one that was killed: %+v", events)
	}
	e := events[0]
	if e.ID != r.Event || e.Kind != kind || !e.Time.Equal(r.Ended) || e.State != r.State || e.Cause != r.Cause || e.Reason != r.Reason ||
		e.Grant != r.Grant || e.Grants != r.Grants || e.Actor != actor {
		t.Errorf("got %+v\nof %+v", e, r)
	}
	if e.Task != task.ID || e.Workload != task.Workload.String() || e.Owner != "team-fin" || e.Purpose != task.Purpose || e.TaskName != task.Name {
		t.Errorf("got %+v\nof %+v", e, task)
	}
}

// TestP12_AnEndThatIsPendingIsRecorded when it has happened and its replica is killed before it knows, whatever that has recorded
// meanwhile; and nobody takes a replica for late because of it.
func TestP12_AnEndThatIsPendingIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newWitness(t, 1)
		one := startReplica(t, store)
		two := newHarness(t, store, func(c *broker.Config) { c.Board = store })
		begun := one.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Lease = broker.MaxLease })
		one.store.loses.Store(true)
		if _, err := one.tryEnd(report, begun.Task.ID, broker.EndKey{}); err == nil {
			t.Fatal("an answer that was lost was given")
		}
		for range 20 {
			w := workload(report)
			req := broker.BeginRequest{Name: "n", Purpose: "p", Lease: broker.MaxLease, Tokens: []broker.TokenRequest{{Audience: "orders"}}}
			if _, err := one.Begin(ctx, w, req); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := len(two.audit.reconciled()); n != 0 {
			t.Errorf("%d ends were recorded for one that is about to", n)
		}
		one.kill()
		time.Sleep(broker.RecordBound)
		if missing := store.missing(two.audit, one.audit); len(missing) > 0 || len(two.audit.reconciled()) != 1 {
			t.Errorf("not recorded: %+v; recorded: %+v", missing, two.audit.reconciled())
		}
	})
}

// slow is a store and its Board that take their time.
type slow struct {
	*witness
	lists time.Duration
}

func (s slow) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	if q.Ended != (broker.EventRange{}) {
		time.Sleep(s.lists)
	}
	return s.witness.List(ctx, q)
}

func (s slow) Notes(ctx context.Context, kind string) ([]broker.BoardNote, error) {
	notes, err := s.witness.Notes(ctx, kind)
	time.Sleep(50 * time.Millisecond)
	return notes, err
}

// TestP12_OneOfTheOthersRecords, and when that one cannot, the next.
func TestP12_OneOfTheOthersRecords(t *testing.T) {
	for name, test := range map[string]struct {
		broken int
		lists  time.Duration
	}{"all can": {}, "one cannot": {broken: 1}, "one alone can": {broken: 2}, "it takes long": {lists: 4 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newWitness(t, 1)
				one := startReplica(t, store)
				var others []*recorder
				for i := range 3 {
					slowly := slow{store, test.lists}
					h := newHarness(t, slowly, func(c *broker.Config) { c.Board = slowly })
					if others = append(others, h.audit); i < test.broken {
						stuck := h.begin(report, withToken).Task.ID
						h.audit.break_(broker.ErrAudit)
						h.end(report, stuck) // it has something to record, and cannot
					}
				}
				id := one.begin(report, withToken).Task.ID
				time.Sleep(3 * time.Second)
				var receipt broker.Receipt
				one.unrecorded(func() { receipt = one.end(report, id) })
				time.Sleep(broker.RecordBound - 8*time.Second)
				n := 0
				for _, log := range others {
					n += len(log.under(receipt.Event))
				}
				// Who cannot has perhaps left two to try at once, which is once too often and does no harm.
				if n == 0 || n > 1 && test.broken == 0 || n > 2 {
					t.Errorf("it is recorded %d times", n)
				}
				if missing := store.missing(append(others, one.audit)...); len(missing) > 0 {
					t.Errorf("not recorded: %+v", missing)
				}
			})
		})
	}
}

// TestP12_AReplicaWhoseLogTakesNothing runs on: its ends are in another one's log in time, each once, however long it lasts.
// When its log works again they are there, too, and no more is recorded for it.
func TestP12_AReplicaWhoseLogTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newWitness(t, 1)
		one := startReplica(t, store)
		defer one.stop()
		two := newHarness(t, store, func(c *broker.Config) { c.Board = store })
		var begun []broker.TaskID
		for range 20 {
			begun = append(begun, two.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Lease = broker.MaxLease }).Task.ID)
		}
		one.audit.break_(broker.ErrAudit)
		for _, id := range begun {
			one.end(report, id)
			time.Sleep(4 * time.Second)
		}
		time.Sleep(broker.RecordBound)
		if missing := store.missing(two.audit); len(missing) > 0 {
			t.Errorf("not recorded: %+v", missing)
		}
		done := len(two.audit.reconciled())
		if done != store.count() {
			t.Errorf("%d events for %d ends", done, store.count())
		}
		one.audit.break_(nil)
		time.Sleep(3 * time.Second)
		if missing := store.missing(one.audit); len(missing) > 0 {
			t.Errorf("not in its own log: %+v", missing)
		}
		one.end(report, one.begin(report, withToken).Task.ID)
		time.Sleep(2 * broker.RecordBound)
		if n := len(two.audit.reconciled()); n != done {
			t.Errorf("%d more events for one that records by itself", n-done)
		}
	})
}

// TestP12_WhatTheBacklogHasNoRoomForIsRecorded when the log takes events again, also by a replica that is alone.
func TestP12_WhatTheBacklogHasNoRoomForIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newWitness(t, 1)
		one := startReplica(t, store)
		defer one.stop()
		one.audit.break_(broker.ErrAudit)
		for range 10_050 {
			if _, err := one.tryBegin(report, nil); err == nil { // it is taken back
				t.Fatal("begun without a record")
			}
		}
		one.audit.break_(nil)
		time.Sleep(2 * time.Second)
		if n := len(store.missing(one.audit)); n != 50 {
			t.Fatalf("%d have found no room, of %d", n, store.count())
		}
		time.Sleep(broker.RecordBound - 10*time.Second)
		if n := len(store.missing(one.audit)); n != 0 {
			t.Errorf("%d are not recorded", n)
		}
		n := len(one.audit.reconciled())
		time.Sleep(2 * broker.RecordBound)
		if again := len(one.audit.reconciled()); again != n {
			t.Errorf("%d were recorded again", again-n)
		}
	})
}

// TestAReplicaThatStopsLeavesNothing to the others when its log has all, and tells them at once when it has not.
func TestAReplicaThatStopsLeavesNothing(t *testing.T) {
	for name, test := range map[string]struct {
		fail error
		left int
	}{"all is recorded": {nil, 0}, "one is not": {broker.ErrAudit, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newWitness(t, 1)
				one := startReplica(t, store)
				two := newHarness(t, store, func(c *broker.Config) { c.Board = store })
				id := one.begin(report, withToken).Task.ID
				time.Sleep(3 * time.Second)
				one.audit.break_(test.fail)
				one.end(report, id)
				one.stop()
				time.Sleep(3 * time.Second)
				if n := len(two.audit.reconciled()); n != test.left {
					t.Errorf("%d were recorded for it", n)
				}
				time.Sleep(2 * broker.RecordBound)
				if n := len(two.audit.reconciled()); n != test.left {
					t.Errorf("%d were recorded for it in the end", n)
				}
			})
		})
	}
}

// TestABoardThatIsAwayKillsNobody: nobody is taken for gone because nobody could tell anything.
func TestABoardThatIsAwayKillsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newWitness(t, 1)
		board := &awayBoard{Board: store}
		share := func(c *broker.Config) { c.Board = board }
		one, two := newHarness(t, store, share), newHarness(t, store, share)
		for range 10 {
			for _, away := range []int32{1, 0, 2, 0} { // at all, and for those who post
				for i := range 4 {
					h := []*harness{one, two}[i%2]
					h.end(report, h.begin(report, withToken).Task.ID)
					time.Sleep(4 * time.Second)
				}
				board.away.Store(away)
			}
		}
		if n := len(one.audit.reconciled()) + len(two.audit.reconciled()); n != 0 {
			t.Errorf("%d were recorded for one that was there", n)
		}
	})
}

type awayBoard struct {
	broker.Board
	away atomic.Int32
}

func (b *awayBoard) Post(ctx context.Context, notes ...broker.BoardNote) error {
	if b.away.Load() > 0 {
		return broker.ErrUnavailable
	}
	return b.Board.Post(ctx, notes...)
}

func (b *awayBoard) Notes(ctx context.Context, kind string) ([]broker.BoardNote, error) {
	if b.away.Load() == 1 {
		return nil, broker.ErrUnavailable
	}
	return b.Board.Notes(ctx, kind)
}

// TestP12_EveryEndIsRecorded, whatever replicas do and whichever are killed, stopped or have a log that takes
// nothing: each is in some log within RecordBound, as long as one of them is well.
func TestP12_EveryEndIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) {
			m := &deaths{T: rt, t: t, store: newWitness(t, rapid.SampledFrom([]int{1, 3}).Draw(rt, "shards"))}
			well, stop := startHarness(t, m.store, func(c *broker.Config) { c.Board = m.store })
			defer stop()
			m.logs = []*recorder{well.audit}
			defer func() {
				for len(m.replicas) > 0 {
					m.lose(m.replicas[0]).kill()
				}
			}()
			m.start()
			rt.Repeat(map[string]func(*rapid.T){
				"":           func(*rapid.T) { m.check() },
				"start":      func(*rapid.T) { m.start() },
				"begin":      func(*rapid.T) { m.tasks = append(m.tasks, well.begin(report, m.drawLife).Task.ID) },
				"end":        func(*rapid.T) { m.end() },
				"end too":    func(*rapid.T) { m.end() },
				"revoke":     func(*rapid.T) { m.revoke() },
				"break":      func(*rapid.T) { m.draw().audit.break_(broker.ErrAudit) },
				"heal":       func(*rapid.T) { m.draw().audit.break_(nil) },
				"kill":       func(*rapid.T) { m.lose(m.draw()).kill() },
				"kill, late": func(*rapid.T) { r := m.lose(m.draw()); r.unrecorded(func() { m.endAt(r) }) },
				"stop":       func(*rapid.T) { m.lose(m.draw()).stop() },
				"wait": func(rt *rapid.T) {
					time.Sleep(time.Duration(rapid.IntRange(1, 12_000).Draw(rt, "ms")) * time.Millisecond)
				},
			})
			time.Sleep(broker.RecordBound)
			m.check()
		})
	})
}

// deaths has replicas that come and go.
type deaths struct {
	*rapid.T
	t        *testing.T
	store    *witness
	replicas []*replica
	logs     []*recorder // of all that there ever were
	tasks    []broker.TaskID
}

func (m *deaths) drawLife(r *broker.BeginRequest) {
	if rapid.Bool().Draw(m.T, "with a token") {
		withToken(r)
	}
	r.Lease = time.Duration(rapid.SampledFrom([]int{5, 600}).Draw(m.T, "lease")) * time.Second
}

func (m *deaths) start() {
	if len(m.replicas) == 3 {
		m.Skip("there are enough")
	}
	r := startReplica(m.t, m.store)
	m.replicas, m.logs = append(m.replicas, r), append(m.logs, r.audit)
}

func (m *deaths) draw() *replica {
	if len(m.replicas) == 0 {
		m.Skip("nobody")
	}
	return rapid.SampledFrom(m.replicas).Draw(m.T, "replica")
}

func (m *deaths) lose(r *replica) *replica {
	m.replicas = slices.DeleteFunc(m.replicas, func(other *replica) bool { return other == r })
	return r
}

func (m *deaths) end() { m.endAt(m.draw()) }

func (m *deaths) endAt(r *replica) {
	if len(m.tasks) > 0 {
		_, _ = r.tryEnd(report, rapid.SampledFrom(m.tasks).Draw(m.T, "task"), broker.EndKey{})
	}
}

func (m *deaths) revoke() {
	r := m.draw()
	grants, err := r.ListGrants(ctx, broker.ListRequest{Live: true})
	if err != nil || len(grants.Grants) == 0 {
		return
	}
	_, _ = r.Revoke(ctx, broker.Revocation{Grant: grants.Grants[0].Grant.ID, Actor: "ada", Reason: "INC-1"})
}

// check wants no end of some time ago that no log has.
func (m *deaths) check() {
	synctest.Wait()
	for _, r := range m.store.missing(m.logs...) {
		if age := time.Since(r.Ended); age > broker.RecordBound {
			m.Fatalf("%s has passed, and no log has %+v", age, r)
		}
	}
}

// TestP12_AReplayIsRecorded: of a begin that was committed and never recorded nobody has a token, and who asks for it again
// gets one when all of it is in the log. However often, it is one event.
func TestP12_AReplayIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		one, stop := startHarness(t, store, nil)
		store.grants.Store(loses)
		for _, with := range []func(*broker.BeginRequest){
			func(r *broker.BeginRequest) { withToken(r); r.Key = "token" },
			func(r *broker.BeginRequest) { r.Key = "none" },
		} {
			_, err := one.tryBegin(report, with)
			want(t, err, broker.ErrUnconfirmed)
		}
		stop()
		store.grants.Store(works)
		two := newHarness(t, store, nil)
		with := func(r *broker.BeginRequest) { withToken(r); r.Key = "token" }
		two.audit.break_(broker.ErrAudit)
		_, err := two.tryBegin(report, with)
		want(t, err, broker.ErrAudit)
		two.audit.break_(nil)
		for i := range 2 {
			begun := two.begin(report, with)
			none := two.begin(report, func(r *broker.BeginRequest) { r.Key = "none" })
			if !begun.Replayed || !none.Replayed {
				t.Fatalf("got %+v and %+v", begun, none)
			}
			ids := map[broker.TaskID]broker.EventID{}
			events := two.audit.of(broker.EventTaskBegun)
			for _, e := range events {
				if was, ok := ids[e.Task]; ok && was != e.ID {
					t.Errorf("%s and %s are one event", was, e.ID)
				}
				if ids[e.Task] = e.ID; !e.Reconciled || e.Actor == "" || e.Owner != "team-fin" || !e.Time.Equal(map[broker.TaskID]time.Time{begun.Task.ID: begun.Task.Begun, none.Task.ID: none.Task.Begun}[e.Task]) {
					t.Errorf("got %+v", e)
				}
			}
			if len(events) != 2*(i+1) || len(ids) != 2 {
				t.Errorf("%d events of %d tasks", len(events), len(ids))
			}
			if n := len(two.audit.of(broker.EventGrantIssued)); n != i+1 {
				t.Errorf("%d grants are in the log", n)
			}
		}
	})
}

// TestP12_AnOperatorsChangeIsRecordedForAKilledReplica, of which the store keeps no receipt: what was asked for, by whom and
// why, and that it may not have happened.
func TestP12_AnOperatorsChangeIsRecordedForAKilledReplica(t *testing.T) {
	selector := broker.Selector{Subject: workload(night).ID.String()}
	for name, test := range map[string]struct {
		kind   broker.EventKind
		events int
		change func(h *harness, standing broker.LockID) error
	}{
		"a selector": {broker.EventRevoked, 1, func(h *harness, _ broker.LockID) error {
			_, err := h.Revoke(ctx, broker.Revocation{Selector: selector, Actor: "ada", Address: "192.0.2.7:1", Reason: "INC-4711 leaked"})
			return err
		}},
		"a key": {broker.EventKeyRevoked, 1, func(h *harness, _ broker.LockID) error {
			_, err := h.Revoke(ctx, broker.Revocation{Key: h.ring.Keys()[0].ID, Actor: "ada", Address: "192.0.2.7:1", Reason: "INC-4711 leaked"})
			return err
		}},
		"many selectors": {broker.EventRevoked, 2, func(h *harness, _ broker.LockID) error {
			_, err := h.RevokeAll(ctx, broker.Mass{Filter: broker.Filter{Workloads: []string{workload(night).ID.String(), workload(small).ID.String()}}, Actor: "ada", Address: "192.0.2.7:1", Reason: "INC-4711 leaked", Ticket: "T-1"})
			return err
		}},
		"a lock": {broker.EventLocked, 1, func(h *harness, _ broker.LockID) error {
			_, err := h.LockAll(ctx, broker.LockRequest{Filter: broker.Filter{Workloads: []string{workload(night).ID.String()}}, Life: time.Hour, Actor: "ada", Address: "192.0.2.7:1", Reason: "INC-4711 leaked"})
			return err
		}},
		"a lift": {broker.EventLifted, 1, func(h *harness, lock broker.LockID) error {
			return h.Lift(ctx, broker.Lifting{Lock: lock, Actor: "ada", Address: "192.0.2.7:1", Reason: "INC-4711 leaked"})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newWitness(t, 3)
				one := startReplica(t, store)
				lock, err := one.Lock(ctx, broker.Lock{Selector: broker.Selector{Subject: workload(small).ID.String()}, Expires: time.Now().Add(time.Hour), Actor: "eve", Reason: "before"})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				at := time.Now()
				one.unrecorded(func() {
					if err := test.change(one.harness, lock); err != nil {
						t.Fatal(err)
					}
				})
				two := newHarness(t, store, func(c *broker.Config) { c.Board = store })
				time.Sleep(broker.RecordBound)
				events := two.audit.reconciled()
				for _, e := range events {
					if e.Kind != test.kind || e.Actor != "ada" || e.Address != "192.0.2.7:1" || e.Reason != "INC-4711 leaked" || !e.Unsure || e.Time.Before(at) || e.Time.Sub(at) > time.Second ||
						(e.Selector == broker.Selector{}) == (e.Kind == broker.EventRevoked || e.Kind == broker.EventLocked) ||
						(e.Lock == "") == (e.Kind == broker.EventLocked || e.Kind == broker.EventLifted) || (e.Key == "") == (e.Kind == broker.EventKeyRevoked) ||
						(e.Revocation == "" || e.Ticket == "") == (test.events > 1) {
						t.Errorf("got %+v", e)
					}
				}
				if len(events) != test.events {
					t.Errorf("%d events were recorded", len(events))
				}
			})
		})
	}
}
