// Package storetest checks that a store keeps the contract of broker.Store. Start with Run, which has
// one case for each promise; Machine compares random calls with a model that is written to be
// obvious; Aging needs a clock that can be moved, since a quarter of an hour passes in it. Lives looks for
// anything that makes a life longer, Races lets calls meet a thousand times, and Tree ends a large one.
//
// A store that passes all of them can stand behind a broker. The cases speak to nothing but
// broker.Store, use no clock but the store's, and expect no speed.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// Backend says how to get at a kind of store.
type Backend struct {
	// New makes a store with an empty data set of its own.
	New func(t testing.TB, shards int) broker.Store
	// Shards are the counts that every case runs with.
	Shards []int
	// In runs one case: synctest.Test for a store that lives in this process, and a plain call for
	// any other.
	In func(t *testing.T, f func(t *testing.T))
	// Advance lets time pass: at least d for the store.
	Advance func(d time.Duration)
	// Share makes Races so many times shorter, for a store that is run once more in a place where it is slow.
	Share int
}

// testCase is one promise.
type testCase struct {
	name string
	run  func(*bench)
}

// Run checks each promise by itself. The waits of a case add up to a few seconds.
func Run(t *testing.T, b Backend) {
	for _, cases := range [][]testCase{
		beginCases(), attributeCases(), grantCases(), quotaCases(), leaseCases(), presenceCases(), holderCases(), joinCases(), endCases(), lostCases(), cascadeCases(),
		controlCases(), watchCases(), listCases(), raceCases(),
	} {
		runCases(t, b, cases)
	}
}

// Aging checks what goes away by time, and that nothing does before. Up to an hour passes in a case.
func Aging(t *testing.T, b Backend) { runCases(t, b, agingCases()) }

func runCases(t *testing.T, b Backend, cases []testCase) {
	for _, shards := range b.Shards {
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s/shards=%d", c.name, shards), func(t *testing.T) {
				b.In(t, func(t *testing.T) { c.run(newBench(t, b, shards)) })
			})
		}
	}
}

// bench is a store on the bench, and what a case needs to work on it.
type bench struct {
	*testing.T
	Backend
	store  broker.Store
	shards int
	shard  int // where the tasks are: the last one

	// control is the version of the control list that calls are decided on. Changes that are made
	// through end keep it up to date.
	control uint64
}

// share is a part of so many rounds.
func (b Backend) share(rounds int) int { return rounds / max(1, b.Share) }

func newBench(t *testing.T, b Backend, shards int) *bench {
	return &bench{T: t, Backend: b, store: b.New(t, shards), shards: shards, shard: shards - 1}
}

func alice() spiffeid.ID { return spiffeid.RequireFromString("spiffe://example.org/alice") }
func bob() spiffeid.ID   { return spiffeid.RequireFromString("spiffe://example.org/bob") }

// An option changes what a call asks for.
type option func(*broker.GrantRequest)

func by(w spiffeid.ID) option            { return func(r *broker.GrantRequest) { r.Workload = w } }
func below(p broker.Task) option         { return func(r *broker.GrantRequest) { r.Begin.Parent = p.ID } }
func lease(d time.Duration) option       { return func(r *broker.GrantRequest) { r.Begin.Lease = d } }
func deadline(d time.Duration) option    { return func(r *broker.GrantRequest) { r.Begin.Deadline = d } }
func quota(q broker.Quota) option        { return func(r *broker.GrantRequest) { r.Quota = q } }
func asking(list ...broker.Asked) option { return func(r *broker.GrantRequest) { r.Grants = list } }

// key sets an idempotency key for the request that the digest stands for.
func key(text string, digest byte) option {
	return func(r *broker.GrantRequest) { r.Begin.Key, r.Begin.Digest = text, [32]byte{digest} }
}

// ask is for a token at an audience.
func (b *bench) ask(audience string, life time.Duration) broker.Asked {
	return broker.Asked{
		ID: broker.NewGrantID(b.shard), Audience: audience, Scopes: broker.Scopes{"read", "write"},
		Binding: broker.BindCertificate, Thumbprint: "thumbprint", Decision: broker.NewDecisionID(), Life: life,
	}
}

// root is a request for a new task that outlives its case.
func (b *bench) root(options ...option) broker.GrantRequest {
	r := broker.GrantRequest{
		Workload: alice(), Task: broker.NewTaskID(b.shard), Control: b.control,
		Begin: &broker.Beginning{
			Name: "test", Purpose: "to see what happens", Lease: 5 * time.Minute, Deadline: time.Hour,
			Ceiling: broker.Ceiling{Audiences: broker.Audiences{"a", "b"}, Scopes: broker.Scopes{"read", "write"}},
		},
	}
	for _, o := range options {
		o(&r)
	}
	return r
}

// begin begins a task, which must succeed.
func (b *bench) begin(options ...option) broker.Task {
	b.Helper()
	return b.must(b.root(options...)).Task
}

// must makes a call that must succeed.
func (b *bench) must(r broker.GrantRequest) broker.GrantReply {
	b.Helper()
	reply, err := b.store.Grant(b.Context(), r)
	if err != nil {
		b.Fatalf("Grant: %v", err)
	}
	return reply
}

// refused makes a call that must fail, and returns its error.
func (b *bench) refused(r broker.GrantRequest, want error) error {
	b.Helper()
	reply, err := b.store.Grant(b.Context(), r)
	if !errors.Is(err, want) {
		b.Fatalf("Grant: got %+v and error %v; want error %v", reply, err, want)
	}
	return err
}

// issuing is a request for grants in a task.
func (b *bench) issuing(task broker.Task, asks ...broker.Asked) broker.GrantRequest {
	return broker.GrantRequest{Workload: task.Workload, Task: task.ID, Control: b.control, Grants: asks}
}

// issue issues one grant, which must succeed.
func (b *bench) issue(task broker.Task, audience string, life time.Duration) broker.Grant {
	b.Helper()
	reply := b.must(b.issuing(task, b.ask(audience, life)))
	if len(reply.Grants) != 1 {
		b.Fatalf("Grant: got %d grants; want 1", len(reply.Grants))
	}
	return reply.Grants[0]
}

// completing says that a task's work is done.
func completing(task broker.Task) broker.Ending {
	return broker.Ending{
		Kind: broker.TargetTask, Task: task.ID, Workload: task.Workload, State: broker.Completed,
		Cause: broker.CauseCaller, Reason: "done", Event: broker.NewEventID(),
	}
}

// due is what a sweeper asks for.
func due(id broker.TaskID) broker.Ending {
	return broker.Ending{Kind: broker.TargetTask, Task: id, IfDue: true, Event: broker.NewEventID()}
}

// revoking takes one grant back.
func revoking(g broker.Grant) broker.Ending {
	return broker.Ending{
		Kind: broker.TargetGrant, Grant: g.ID, State: broker.Revoked, Cause: broker.CauseOperator,
		Reason: "leaked", Event: broker.NewEventID(),
	}
}

// end ends one target, which must succeed.
func (b *bench) end(e broker.Ending) broker.EndReply {
	b.Helper()
	reply := b.ends(e)[0]
	if reply.Err != nil {
		b.Fatalf("End of a %s: %v", e.Kind, reply.Err)
	}
	return reply
}

func (b *bench) ends(list ...broker.Ending) []broker.EndReply {
	b.Helper()
	replies, err := b.store.End(b.Context(), list)
	if err != nil {
		b.Fatalf("End: %v", err)
	}
	if len(replies) != len(list) {
		b.Fatalf("End: got %d replies to %d targets", len(replies), len(list))
	}
	b.control = b.feed().Controls[b.shard].Version
	return replies
}

func (b *bench) beat(task broker.Task) broker.Pulse {
	b.Helper()
	pulses, err := b.store.Heartbeat(b.Context(), []broker.Beat{{Task: task.ID, Workload: task.Workload}})
	if err != nil || len(pulses) != 1 {
		b.Fatalf("Heartbeat: got %d pulses, error %v", len(pulses), err)
	}
	return pulses[0]
}

func (b *bench) lookup(ref broker.Ref) broker.Record {
	b.Helper()
	record, err := b.store.Lookup(b.Context(), ref)
	if err != nil {
		b.Fatalf("Lookup %v: %v", ref, err)
	}
	return record
}

// now asks for a task anew.
func (b *bench) now(task broker.Task) broker.Task {
	b.Helper()
	return b.lookup(broker.Ref{Task: task.ID}).Task
}

// state wants a task to be in a state.
func (b *bench) state(task broker.Task, want broker.State) {
	b.Helper()
	if got := b.now(task); got.State != want {
		b.Fatalf("the task is %s; want %s\n%+v", got.State, want, got)
	}
}

// absent wants a task to be unknown to everything.
func (b *bench) absent(id broker.TaskID) {
	b.Helper()
	if record, err := b.store.Lookup(b.Context(), broker.Ref{Task: id}); !errors.Is(err, broker.ErrNotFound) {
		b.Fatalf("Lookup: got %+v, error %v; want ErrNotFound", record.Task, err)
	}
	for _, task := range b.list(broker.Query{}).Tasks {
		if task.ID == id {
			b.Fatalf("List has a task that should not be there: %+v", task)
		}
	}
}

func (b *bench) list(q broker.Query) broker.Page {
	b.Helper()
	page, err := b.store.List(b.Context(), q)
	if err != nil {
		b.Fatalf("List: %v", err)
	}
	return page
}

// feed is everything that is in the feed now.
func (b *bench) feed() broker.Update {
	b.Helper()
	update, err := first(b.Context(), b.store, broker.Position{})
	if err != nil {
		b.Fatalf("Watch: %v", err)
	}
	for _, e := range update.Entries {
		if !update.Now.Before(e.Until) {
			b.Fatalf("at %s, Watch delivers an entry that has passed: %+v", update.Now, e)
		}
	}
	return update
}

// entries are those about a task or a grant.
func (b *bench) entries(denial broker.Denial) []broker.Entry {
	b.Helper()
	var out []broker.Entry
	for _, e := range b.feed().Entries {
		if e.Denial == denial {
			out = append(out, e)
		}
	}
	return out
}

// entry is the only one about a task or a grant.
func (b *bench) entry(denial broker.Denial) broker.Entry {
	b.Helper()
	entries := b.entries(denial)
	if len(entries) != 1 {
		b.Fatalf("the feed has %d entries about %+v; want 1", len(entries), denial)
	}
	return entries[0]
}

func ofTask(task broker.Task) broker.Denial {
	return broker.Denial{Kind: broker.DenyTask, Task: task.ID}
}

func ofGrant(g broker.Grant) broker.Denial {
	return broker.Denial{Kind: broker.DenyGrant, Grant: g.ID}
}

var errEnough = errors.New("one delivery is enough")

// first returns the first delivery from a position on.
func first(ctx context.Context, store broker.Store, from broker.Position) (broker.Update, error) {
	var update broker.Update
	err := store.Watch(ctx, from, func(u broker.Update) error {
		update = u
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return update, err
}

// same wants two values to be equal.
func (b *bench) same(what string, got, want any) {
	b.Helper()
	if diff := difference(got, want); diff != "" {
		b.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// difference is empty for values that say the same.
func difference(got, want any) string {
	if reflect.DeepEqual(got, want) {
		return "" // as is nearly always the case; cmp takes its time
	}
	return cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(x, y spiffeid.ID) bool { return x == y }),
		cmp.Comparer(func(x, y error) bool { return errorText(x) == errorText(y) }))
}

// errorText has what a store's error must say.
func errorText(err error) string {
	var (
		ended  *broker.Ended
		behind *broker.Behind
		over   *broker.QuotaExceeded
	)
	switch {
	case err == nil:
		return ""
	case errors.As(err, &ended):
		return fmt.Sprintf("%s ended: %s by %s at %d", ended.Task, ended.State, ended.Cause, ended.At.UnixMilli())
	case errors.As(err, &behind):
		return fmt.Sprintf("behind %d in shard %d", behind.Version, behind.Shard)
	case errors.As(err, &over):
		return fmt.Sprintf("over %d %s", over.Limit, over.What)
	}
	for _, sentinel := range []error{
		broker.ErrInvalid, broker.ErrMismatch, broker.ErrNotFound, broker.ErrTooShort, broker.ErrEpoch,
		broker.ErrUsed, broker.ErrAdopted,
	} {
		if errors.Is(err, sentinel) {
			return sentinel.Error()
		}
	}
	return "unexpected: " + err.Error()
}
