package verify

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"time"
)

// Grant is what a verified token says. It has no method that returns the token: to pass one on is
// the confused deputy's mistake. Treat it as read-only.
type Grant struct {
	ID       string   // gnt_…
	Workload string   // sub: the SPIFFE ID on whose behalf
	Client   string   // client_id: the SPIFFE ID that presents it; Workload, unless delegated
	Actors   []string // the delegation chain, nearest first; nil unless delegated
	Audience string
	Scopes   []string
	Details  []json.RawMessage // authorization_details (RFC 9396): objects, each with a type; see Detail
	Task     Task
	Issued   time.Time // to the second
	Expires  time.Time // to the second
	Bound    bool      // to the certificate of the connection that it came by

	key        string // the kid
	shard      int
	epoch      uint64
	number     uint64 // the shard's feed number at issue
	stale      bool   // it passed the feed because of OnStale: Accept
	thumbprint string // cnf x5t#S256; empty when the token is not bound
}

// Task names the task of a grant.
type Task struct {
	ID   string
	Root string
	Path []string // from Root to ID
	Name string
}

// Has reports whether the grant has the scope, compared byte by byte.
func (g *Grant) Has(scope string) bool { return slices.Contains(g.Scopes, scope) }

// LogValue implements slog.LogValuer with what a log line of a resource server needs.
func (g *Grant) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("grant", g.ID),
		slog.String("task", g.Task.ID),
		slog.String("root", g.Task.Root),
		slog.String("workload", g.Workload),
		slog.String("client", g.Client),
	)
}

type grantKey struct{}

// NewContext returns a context with the grant, for adapters to other frameworks and for tests of
// handlers.
func NewContext(ctx context.Context, g *Grant) context.Context {
	return context.WithValue(ctx, grantKey{}, g)
}

// FromContext returns the grant that Middleware or NewContext put into a context.
func FromContext(ctx context.Context) (*Grant, bool) {
	g, ok := ctx.Value(grantKey{}).(*Grant)
	return g, ok
}
