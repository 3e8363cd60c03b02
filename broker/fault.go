package broker

import (
	"log/slog"
	"time"
)

// sayAgain is how often the log has a fault that lasts.
const sayAgain = 30 * time.Second

// fault is what a loop meets again and again while something is away. The log has it when it begins,
// every sayAgain while it lasts, and when it is over. Only one goroutine uses it.
type fault struct {
	logger     *slog.Logger
	what, over string
	began      time.Time // zero while there is none
	said       time.Time
}

// met says that err has happened at now.
func (f *fault) met(now time.Time, err error, more ...any) {
	if f.began.IsZero() {
		f.began = now
	} else if now.Sub(f.said) < sayAgain {
		return
	}
	f.said = now
	f.logger.Error(f.what, append(more, "error", err)...)
}

// ended says that all was well at now.
func (f *fault) ended(now time.Time) {
	if f.began.IsZero() {
		return
	}
	f.logger.Info(f.over, "after", now.Sub(f.began).Round(time.Millisecond))
	f.began = time.Time{}
}
