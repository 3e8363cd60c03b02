package broker

import (
	"context"
	"errors"
	"strings"
	"time"
)

// Revocation is an operator's word that something is over. Exactly one of the targets is set.
type Revocation struct {
	Task     TaskID
	Grant    GrantID
	Selector Selector
	Key      string // a kid: every token that it signed
	All      bool   // every token that was issued before now

	Actor      string // who says so
	Address    string // the peer's
	Thumbprint string // of the actor's certificate
	Reason     string // why; required
}

// Revoke makes tokens dead: a task's with everything below it, one grant's, or those that a selector
// matches and that were issued before this moment. When it returns nil they are dead for every
// look-up; those of a key are dead at every verifier, and the key signs nothing any more. While the
// store is away a task or grant is revoked as End does it with an end key, and so is a key: it is out of use here, which
// this replica's feed says, and the others are told when the store is back. The rest is refused.
// Errors: ErrInvalid, ErrNotFound and those of the store. ErrUnconfirmed or ErrSigning beside the
// receipt of a key: it is denied, and is out of use here and wherever the feed is heard, but that is
// not in the replicas' common record yet, or there is no other key yet.
func (b *Broker) Revoke(ctx context.Context, r Revocation) (Receipt, error) {
	end := Ending{Cause: CauseOperator, State: Revoked, Reason: r.Reason}
	targets := 0
	pick := func(set bool, kind TargetKind) {
		if set {
			end.Kind = kind
			targets++
		}
	}
	pick(r.Task != "", TargetTask)
	pick(r.Grant != "", TargetGrant)
	pick(r.Selector != (Selector{}), TargetSelector)
	pick(r.Key != "", TargetKey)
	pick(r.All, TargetAll)
	if targets != 1 {
		return Receipt{}, invalid("target", "names %d things; name exactly one task, grant, selector, key, or all", targets)
	}
	if err := checkOperator(r.Actor, r.Reason); err != nil {
		return Receipt{}, err
	}
	end.Task, end.Grant, end.Selector, end.Key = r.Task, r.Grant, r.Selector, r.Key
	switch end.Kind {
	case TargetTask, TargetGrant:
		return b.endOne(ctx, &pendingEnd{Ending: end, actor: r.Actor, address: r.Address, until: b.Now().Add(longest(end.Kind))})
	case TargetSelector:
		if err := r.Selector.Validate(); err != nil {
			return Receipt{}, err
		}
	}
	event := Event{Kind: EventRevoked, Actor: r.Actor, Address: r.Address, Thumbprint: r.Thumbprint, Reason: r.Reason, Selector: r.Selector}
	if end.Kind == TargetKey {
		event.Kind, event.Key = EventKeyRevoked, r.Key
		return b.revokeKey(ctx, end, event)
	}
	return b.control(ctx, end, event)
}

// revokeKey takes a key out of use before it denies what that has signed, so that nothing is signed
// with it after the denial. Replicas that the one does not reach hear of the other.
func (b *Broker) revokeKey(ctx context.Context, end Ending, event Event) (Receipt, error) {
	retired := b.Minter.Retire(end.Key)
	if errors.Is(retired, ErrNotFound) || errors.Is(retired, ErrUnavailable) {
		return Receipt{}, retired
	}
	receipt, err := b.control(ctx, end, event)
	if err == nil && !receipt.Durable && errors.Is(retired, ErrUnconfirmed) {
		retired = nil // the receipt says it
	}
	return receipt, errors.Join(err, retired)
}

// longest is how long a target can go on killing nothing that is alive: no task has tokens for
// longer, and no grant.
func longest(kind TargetKind) time.Duration {
	if kind == TargetGrant {
		return MaxTokenLife + Margin
	}
	return MaxDeadline + Margin
}

// Lock denies new tasks and tokens to what the selector matches, until it expires. Tokens that are
// out stay good; revoke them after locking, so that none slips in between. Errors: ErrInvalid and
// those of the store.
func (b *Broker) Lock(ctx context.Context, lock Lock) (LockID, error) {
	if err := lock.Selector.Validate(); err != nil {
		return "", err
	}
	if err := checkOperator(lock.Actor, lock.Reason); err != nil {
		return "", err
	}
	if d := lock.Expires.Sub(b.Now()); d <= 0 || d > MaxLock {
		return "", invalid("expires", "is %s from now; it must be in the future, and %s from now at most", d, MaxLock)
	}
	lock.ID = NewLockID()
	_, err := b.control(ctx, Ending{Kind: TargetLock, Lock: lock, Reason: lock.Reason},
		Event{Kind: EventLocked, Actor: lock.Actor, Reason: lock.Reason, Selector: lock.Selector, Lock: lock.ID, Expires: lock.Expires})
	return lock.ID, err
}

// Lifting is an operator's word that a lock is over.
type Lifting struct {
	Lock       LockID
	Actor      string // who says so
	Address    string // the peer's
	Thumbprint string // of the actor's certificate
	Reason     string // why; required
}

// Lift takes a lock away before it expires, and does nothing to one that is lifted already. Errors: ErrInvalid,
// ErrNotFound, also of one that has expired, and those of the store.
func (b *Broker) Lift(ctx context.Context, l Lifting) error {
	if err := checkOperator(l.Actor, l.Reason); err != nil {
		return err
	}
	receipt, err := b.control(ctx, Ending{Kind: TargetLift, Lock: Lock{ID: l.Lock}, Reason: l.Reason},
		Event{Kind: EventLifted, Actor: l.Actor, Address: l.Address, Thumbprint: l.Thumbprint, Reason: l.Reason, Lock: l.Lock})
	if err == nil {
		b.seen(ctx, receipt.Feed)
	}
	return err
}

// control writes a change that goes to every shard, and its event.
func (b *Broker) control(ctx context.Context, end Ending, event Event) (Receipt, error) {
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	event.ID = b.rounds.event()
	end.Event = event.ID
	b.intend(ctx, event)
	limit := withdrawCall
	if end.Kind == TargetKey {
		limit = storeTry // there is an answer without the store
	}
	// What may have happened is said twice rather than without an event: it does no harm.
	replies, err := b.endTwice(ctx, limit, end)
	if isAway(err) && end.Kind == TargetKey {
		return b.removeHere(ctx, end, event)
	}
	if err != nil {
		b.recordUnsure(ctx, err, event)
		return Receipt{}, err
	}
	if replies[0].Err != nil {
		return Receipt{}, replies[0].Err
	}
	receipt := replies[0].Receipt
	if receipt.First {
		event.Time = receipt.Ended
		b.record(ctx, []Event{event})
	}
	return receipt, nil
}

func checkOperator(actor, reason string) error {
	if actor == "" {
		return invalid("actor", "is empty; it must name who acts")
	}
	if strings.TrimSpace(reason) == "" || len(reason) > MaxPurpose {
		return invalid("reason", "has %d bytes; say why, in 1 to %d", len(reason), MaxPurpose)
	}
	return nil
}
