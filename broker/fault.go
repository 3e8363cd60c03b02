package broker

import (
	"log/slog"
	"sync"
	"time"
)

// sayAgain is how often the log has a fault that lasts.
const sayAgain = 30 * time.Second

// Fault is what is met again and again while something is away. The log has it when it begins, every
// 30 s while it lasts, and when it is over. It is safe for concurrent use.
type Fault struct {
	Logger     *slog.Logger
	What, Over string // what the log says while it lasts, and when it is over

	mu    sync.Mutex // guards all below
	began time.Time  // zero while there is none
	said  time.Time
}

// Met says that err has happened at now; more goes with it into the log.
func (f *Fault) Met(now time.Time, err error, more ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.began.IsZero() {
		f.began = now
	} else if now.Sub(f.said) < sayAgain {
		return
	}
	f.said = now
	f.Logger.Error(f.What, append(more, "error", err)...)
}

// Ended says that all was well at now.
func (f *Fault) Ended(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.began.IsZero() {
		return
	}
	f.Logger.Info(f.Over, "after", now.Sub(f.began).Round(time.Millisecond))
	f.began = time.Time{}
}
