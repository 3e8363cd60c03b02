package broker

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Task returns a task of the workload, as of the store's time. ErrNotFound for one that is unknown
// or somebody else's.
func (b *Broker) Task(ctx context.Context, w Workload, id TaskID) (Task, error) {
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	record, err := b.lookup(ctx, w, Ref{Task: id})
	return record.Task, err
}

// GrantStatus is a grant with its task and whether its token is good now.
type GrantStatus struct {
	Grant Grant
	Task  Task
	Live  bool
}

// Grant returns a grant of the workload, as of the store's time. ErrNotFound for one that is
// unknown or somebody else's.
func (b *Broker) Grant(ctx context.Context, w Workload, id GrantID) (GrantStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	record, err := b.lookup(ctx, w, Ref{Grant: id})
	if err != nil {
		return GrantStatus{}, err
	}
	return b.grantStatus(ctx, record)
}

// grantStatus judges a grant by a control list that is not older than what the store has said.
func (b *Broker) grantStatus(ctx context.Context, r Record) (GrantStatus, error) {
	control, err := b.controlAt(ctx, r.Grant.ID.Shard(), r.Control)
	if err != nil {
		return GrantStatus{}, err
	}
	return b.judge(r, control), nil
}

// judge says whether a grant is live, with what is in force here alone.
func (b *Broker) judge(r Record, control Control) GrantStatus {
	r.Grant.Revoked = r.Grant.Revoked || b.pending.revoked(r.Grant.ID)
	return GrantStatus{Grant: r.Grant, Task: r.Task, Live: r.Grant.Live(r.Now, r.Task) && !control.Denies(r.Grant, r.Task)}
}

func (s GrantStatus) record() Record { return Record{Grant: s.Grant, Task: s.Task} }

func (b *Broker) lookup(ctx context.Context, w Workload, ref Ref) (Record, error) {
	record, err := b.Store.Lookup(ctx, ref)
	if err != nil {
		return Record{}, err
	}
	if record.Task.Workload != w.ID {
		return Record{}, ErrNotFound
	}
	record.Task = b.pending.task(record.Task)
	return record, nil
}

// controlAt waits for a control list that is not older than version, until ctx ends.
func (b *Broker) controlAt(ctx context.Context, shard int, version uint64) (Control, error) {
	if err := b.view.catchUp(ctx, &Behind{Shard: shard, Version: version}); err != nil {
		return Control{}, err
	}
	control, _, err := b.view.control(shard)
	return control, err
}

// Self is what the broker knows of a workload.
type Self struct {
	Registration WorkloadRegistration // empty for one that only serves audiences, or is a source of ends
	Serves       []string             // audiences, sorted
	Source       string               // the name of the source of ends that it is, or ""
	Locks        []Lock               // those that stand on it, whatever else they name
}

// Whoami returns the workload's registration, the audiences that it serves, the source of ends that it
// is, and the locks on it.
// Errors: ErrUnregistered, ErrNotReady.
func (b *Broker) Whoami(_ context.Context, w Workload) (Self, error) {
	serves := b.Registry.Serves(w.ID)
	source, noSource := b.Registry.Source(w.ID)
	registration, err := b.Registry.Workload(w.ID)
	if err != nil && (len(serves) == 0 && noSource != nil || !errors.Is(err, ErrUnregistered)) {
		return Self{}, unregistered(w, err)
	}
	shard, err := b.rootShard(w.ID)
	if err != nil {
		return Self{}, err
	}
	control, now, err := b.view.control(shard)
	if err != nil {
		return Self{}, err
	}
	self := Self{Registration: registration, Serves: serves, Source: source.Name}
	for _, lock := range control.Locks {
		if now.Before(lock.Expires) && lock.Selector.MatchesSubject(w.ID.String()) {
			self.Locks = append(self.Locks, lock)
		}
	}
	return self, nil
}

// registrations are those of workloads, in their order. One that has left the inventory has nothing but its ID.
func (b *Broker) registrations(ids []spiffeid.ID) (known []WorkloadRegistration) {
	for _, id := range ids {
		known = append(known, b.registration(id))
	}
	return known
}

// registration is the inventory's word, and an empty one for a workload that has left it.
func (b *Broker) registration(id spiffeid.ID) WorkloadRegistration {
	registration, err := b.Registry.Workload(id)
	if errors.Is(err, ErrUnregistered) {
		registration.ID = id
	}
	return registration
}
