package broker

import (
	"slices"
	"time"
)

// MaxLock is the longest that a lock may stand before somebody must renew it.
const MaxLock = 30 * 24 * time.Hour

// Lock denies new tasks and tokens to whatever its selector matches, until it expires or is lifted.
type Lock struct {
	ID       LockID
	Selector Selector
	Reason   string
	Actor    string
	Since    time.Time // the store's time
	Expires  time.Time
}

// Control is one shard's control list: the locks that stand, and the unexpired denials that name
// tokens by a property instead of by ID. It is small, and every replica has the whole of it.
type Control struct {
	// Version is the feed number of the newest change. A decision is made against a version, and a
	// store refuses to commit one that was made against an older list.
	Version uint64
	Locks   []Lock
	Denials []Entry // of the kinds DenySelector and DenyAll
}

// Locked returns the first lock at now that covers one of the subjects, or its token for the audience and
// scopes. A lock that names an audience or scope does not cover a task as such.
func (c Control) Locked(now time.Time, subjects []string, audience string, scopes []string) (Lock, bool) {
	i := slices.IndexFunc(c.Locks, func(l Lock) bool {
		return now.Before(l.Expires) && l.Selector.Matches(subjects, audience, scopes)
	})
	if i < 0 {
		return Lock{}, false
	}
	return c.Locks[i], true
}

// Denies reports whether a grant of a task is dead by a selector that came after it.
func (c Control) Denies(g Grant, t Task) bool {
	if len(c.Denials) == 0 {
		return false
	}
	subjects := t.Subjects()
	return slices.ContainsFunc(c.Denials, func(e Entry) bool {
		if e.Number <= g.Number {
			return false
		}
		return e.Denial.Kind == DenyAll ||
			e.Denial.Selector.Matches(subjects, g.Audience, g.Scopes)
	})
}
