package memory

import (
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// lock is the record of a lock. It stays when the lock is lifted, until it would have expired, so
// that repeating either call changes nothing.
type lock struct {
	broker.Lock
	locked broker.Receipt
	lifted *broker.Receipt
}

// deny announces in every shard a denial that names tokens by a property.
func (s *Store) deny(e broker.Ending, denial broker.Denial, now time.Time) broker.EndReply {
	for _, sh := range s.shards {
		s.announce(sh, broker.Entry{Denial: denial, Until: now.Add(broker.MaxTokenLife + broker.Margin)})
	}
	return broker.EndReply{Receipt: s.receipt(e, now)}
}

func (s *Store) addLock(e broker.Ending, now time.Time) broker.EndReply {
	if l := s.lock(e.Lock.ID, now); l != nil {
		return broker.EndReply{Receipt: again(&l.locked)}
	}
	if !now.Before(e.Lock.Expires) {
		return broker.EndReply{Err: &broker.Invalid{Field: "expires", Detail: "is over already by the store's clock; choose a later moment"}}
	}
	s.changeControl()
	l := &lock{Lock: e.Lock, locked: s.receipt(e, now)}
	l.Since = now
	s.locks = append(s.locks, l)
	return broker.EndReply{Receipt: cloneReceipt(l.locked)}
}

func (s *Store) lift(e broker.Ending, now time.Time) broker.EndReply {
	l := s.lock(e.Lock.ID, now)
	switch {
	case l == nil:
		return broker.EndReply{Err: broker.ErrNotFound}
	case l.lifted != nil:
		return broker.EndReply{Receipt: again(l.lifted)}
	}
	s.changeControl()
	receipt := s.receipt(e, now)
	l.lifted = &receipt
	return broker.EndReply{Receipt: cloneReceipt(receipt)}
}

// lock returns the record of a lock that has not expired, or nil.
func (s *Store) lock(id broker.LockID, now time.Time) *lock {
	i := slices.IndexFunc(s.locks, func(l *lock) bool { return l.ID == id && now.Before(l.Expires) })
	if i < 0 {
		return nil
	}
	return s.locks[i]
}

// changeControl numbers a change of the control lists that verifiers need not hear of: it moves the
// position, and so the replicas, without an entry.
func (s *Store) changeControl() {
	for _, sh := range s.shards {
		sh.version = s.advance(sh)
	}
}

// control is a shard's control list at now.
func (s *Store) control(sh *shard, now time.Time) broker.Control {
	c := broker.Control{Version: sh.version}
	for _, l := range s.locks {
		if l.lifted == nil && now.Before(l.Expires) {
			c.Locks = append(c.Locks, l.Lock)
		}
	}
	for _, e := range sh.denials {
		if now.Before(e.Until) {
			c.Denials = append(c.Denials, cloneEntry(e))
		}
	}
	return c
}
