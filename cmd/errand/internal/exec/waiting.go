//go:build unix

package exec

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
)

// waiting is a slog.Handler that says what the SDK waits for at its start. After that it is silent,
// since exec tells the rest in its own words.
type waiting struct {
	say  func(format string, args ...any)
	over atomic.Bool
}

func (w *waiting) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && !w.over.Load()
}

func (w *waiting) Handle(_ context.Context, r slog.Record) error {
	text := strings.TrimPrefix(r.Message, "errand: ")
	r.Attrs(func(a slog.Attr) bool {
		text += fmt.Sprintf("; %s: %s", a.Key, a.Value)
		return true
	})
	w.say("%s", text)
	return nil
}

func (w *waiting) WithAttrs([]slog.Attr) slog.Handler { return w }
func (w *waiting) WithGroup(string) slog.Handler      { return w }
