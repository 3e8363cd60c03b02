package sdk

import (
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// WithTransports replaces the connections, so that time can be that of a synctest bubble.
func WithTransports(make func(*x509svid.SVID) (broker, servers http.RoundTripper)) Option {
	return func(c *config) {
		c.connect = func(g *generation, _ spiffeid.ID) { g.broker, g.servers = make(g.svid) }
	}
}

// WithClocks replaces both clocks. Timers go on by the real one, as if they were late.
func WithClocks(steady, wall func() time.Time) Option {
	return func(c *config) {
		c.clock = func() instant { return instant{steady: steady(), wall: wall().Round(0)} }
	}
}

// WithEnv replaces the environment.
func WithEnv(env map[string]string) Option {
	return func(c *config) { c.getenv = func(name string) string { return env[name] } }
}

// WithMaxTasks replaces MaxTasks.
func WithMaxTasks(n int) Option { return func(c *config) { c.maxTasks = n } }

// Cached is how many tokens a task has in memory.
func Cached(t *Task) int {
	t.tokens.mu.Lock()
	defer t.tokens.mu.Unlock()
	return len(t.tokens.slots)
}

// Doors of parsers, for fuzzing.
var (
	Rejected = rejected
	Problem  = problem
	Class    = class
	OneLine  = oneLine
)
