package redis

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/tinylib/msgp/msgp"

	"github.com/errandhq/errand/broker"
)

// maxUnreadable bounds the records that are remembered as named, and so the lines in the log.
const maxUnreadable = 100

// unreadable names each record that cannot be read once, which is treated as missing: nothing in it is alive. So it
// does with keys that have become something else.
type unreadable struct {
	mu    sync.Mutex // guards named
	named map[string]bool
}

// report is given what a script says of a record: its key, and the field or ID in it.
func (u *unreadable) report(logger *slog.Logger, where []byte) {
	n, rest, err := msgp.ReadArrayHeaderBytes(where)
	key, rest, errKey := msgp.ReadStringBytes(rest)
	id, _, errID := msgp.ReadStringBytes(rest)
	if errors.Join(err, errKey, errID) != nil || n != 2 {
		return
	}
	u.name(logger, key, id)
}

// name is given the key and the field or ID in it.
func (u *unreadable) name(logger *slog.Logger, key, id string) {
	id = fmt.Sprintf("%.100q", id)
	u.once(logger, key+id, func() {
		logger.Error("a record in redis cannot be read and counts as missing, and that of a delegation as used; delete it", "key", key, "id", id)
	})
}

// once has something named that was not, as long as there is room.
func (u *unreadable) once(logger *slog.Logger, what string, name func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.named[what] || len(u.named) >= maxUnreadable {
		return
	}
	if u.named == nil {
		u.named = map[string]bool{}
	}
	u.named[what] = true
	name()
	if len(u.named) == maxUnreadable {
		logger.Error("more records in redis may be unreadable; they are not named any more until a restart", "named", maxUnreadable)
	}
}

// spoilt is a record whose shape a script could read, and whose content nobody can.
type spoilt struct {
	grant bool // else a task
	id    string
}

// spoilt returns ErrNotFound when an answer has a record that cannot be read, and names it in the log: it counts
// as missing.
func (s *Store) spoilt(r *reply) error {
	if r.spoilt == nil {
		return nil
	}
	key := keyOf(s.prefix, r.shard, "tasks")
	if r.spoilt.grant {
		key = s.grantKey(r.shard, r.spoilt.id)
	}
	s.unreadable.name(s.logger, key, r.spoilt.id)
	r.spoilt = nil
	return broker.ErrNotFound
}
