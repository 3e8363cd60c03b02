package redis

import (
	"fmt"
	"log/slog"
	"sync"
)

// maxUnreadable bounds the records that are remembered as named, and so the lines in the log.
const maxUnreadable = 100

// unreadable names each record that cannot be read once. It is treated as missing: nothing in it is
// alive.
type unreadable struct {
	mu    sync.Mutex // guards named
	named map[string]bool
}

// report is given the key and the field or ID in it.
func (u *unreadable) report(logger *slog.Logger, where any) {
	list, ok := where.([]any)
	if !ok || len(list) != 2 {
		return
	}
	key, id := fmt.Sprint(list[0]), fmt.Sprintf("%.100q", fmt.Sprint(list[1]))
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.named[key+id] || len(u.named) >= maxUnreadable {
		return
	}
	if u.named == nil {
		u.named = map[string]bool{}
	}
	u.named[key+id] = true
	logger.Error("a record in redis cannot be read and counts as missing; delete it", "key", key, "id", id)
	if len(u.named) == maxUnreadable {
		logger.Error("more records in redis may be unreadable; they are not named any more until a restart", "named", maxUnreadable)
	}
}
