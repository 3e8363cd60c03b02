package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Requirement is something that a route asks of a good token. Those of one route are looked at in
// their order, after everything else has been found good, and the first that is not met refuses
// the request. The functions that make one panic on what no token can ever meet, so that the mistake
// is seen when the server starts.
type Requirement interface {
	// check returns nil, or an error that matches one of this package's.
	check(context.Context, *Grant) error
	// scopes are those that the requirement names.
	scopes() []string
}

// Scope requires all the scopes; none at all means any good token. The refusal is ErrScope: 403
// insufficient_scope.
func Scope(all ...string) Requirement { return allOf(scopeNames(all)) }

// AnyScope requires one of the scopes. A refusal asks for the first of them, so name the least first.
func AnyScope(oneOf ...string) Requirement {
	if len(oneOf) == 0 {
		panic("verify: AnyScope needs at least one scope")
	}
	return anyOf(scopeNames(oneOf))
}

// Workload requires that the workload on whose behalf a token is used, and the one that presents it,
// each match one of the patterns: a SPIFFE ID, or one that ends in /* and means everything below. The
// refusal is ErrForbidden: 403.
func Workload(patterns ...string) Requirement {
	if len(patterns) == 0 {
		panic("verify: Workload needs at least one pattern")
	}
	for _, pattern := range patterns {
		id := pattern
		if above, below := strings.CutSuffix(pattern, "*"); below {
			id = above + "x" // any segment, to see whether the rest is an ID
		}
		if !isSPIFFEID(id) || id != pattern && !strings.HasSuffix(pattern, "/*") {
			panic(fmt.Sprintf("verify: %q is not the SPIFFE ID of a workload, nor one that ends in /*", pattern))
		}
	}
	return workloads(slices.Clone(patterns))
}

// Check requires that f returns nil: what only this resource server can know. The name is for the
// log. An error of f that matches one of this package's counts as that, so that ErrStale says "try
// again"; every other is ErrForbidden: 403. What it says is not told to the client.
func Check(name string, f func(context.Context, *Grant) error) Requirement {
	if f == nil {
		panic(fmt.Sprintf("verify: the check %q has no function", name))
	}
	return &custom{name, f}
}

// KeepInFlight requires nothing. With it, Middleware does not end a request that is running when
// its grant dies or expires, for work that must not stop half-way. Its values are equal, so that an
// adapter can find it among its requirements.
func KeepInFlight() Requirement { return keepInFlight{} }

type allOf []string

func (all allOf) scopes() []string { return all }

func (all allOf) check(_ context.Context, g *Grant) error {
	for _, scope := range all {
		if !g.Has(scope) {
			return &insufficient{all}
		}
	}
	return nil
}

type anyOf []string

func (some anyOf) scopes() []string { return some }

func (some anyOf) check(_ context.Context, g *Grant) error {
	if slices.ContainsFunc(some, g.Has) {
		return nil
	}
	return &insufficient{some[:1]}
}

// insufficient is ErrScope with what would be enough.
type insufficient struct{ scopes []string }

func (e *insufficient) Error() string {
	return fmt.Sprintf("%s: it needs %q", ErrScope, strings.Join(e.scopes, " "))
}

func (e *insufficient) Unwrap() error { return ErrScope }

type workloads []string

func (w workloads) scopes() []string { return nil }

func (w workloads) check(_ context.Context, g *Grant) error {
	for _, id := range []string{g.Workload, g.Client} {
		if !w.match(id) {
			return fmt.Errorf("%w: this is not for %s", ErrForbidden, id)
		}
	}
	return nil
}

func (w workloads) match(id string) bool {
	for _, pattern := range w {
		above, below := strings.CutSuffix(pattern, "*")
		if id == pattern || below && strings.HasPrefix(id, above) {
			return true
		}
	}
	return false
}

type custom struct {
	name string
	f    func(context.Context, *Grant) error
}

func (c *custom) scopes() []string { return nil }

func (c *custom) check(ctx context.Context, g *Grant) error {
	err := c.f(ctx, g)
	switch {
	case err == nil:
		return nil
	case known(err):
		return fmt.Errorf("the check %q: %w", c.name, err)
	}
	return fmt.Errorf("%w: the check %q: %w", ErrForbidden, c.name, err)
}

type keepInFlight struct{}

func (keepInFlight) scopes() []string                    { return nil }
func (keepInFlight) check(context.Context, *Grant) error { return nil }

// scopeNames copies the names, and panics on one that no token can have.
func scopeNames(names []string) []string {
	for _, name := range names {
		if !isScope(name) {
			panic(fmt.Sprintf("verify: %q is not a scope (RFC 6749 §3.3)", name))
		}
	}
	return slices.Clone(names)
}

func isScope(name string) bool {
	return name != "" && len(name) <= maxScopeBytes && !strings.ContainsFunc(name, notNameRune)
}

// meets returns the error of the first requirement that the grant does not meet.
func meets(ctx context.Context, g *Grant, reqs []Requirement) error {
	for _, req := range reqs {
		if err := req.check(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// scopesOf are the scopes that the requirements name, each once.
func scopesOf(reqs []Requirement) []string {
	if len(reqs) == 1 {
		return reqs[0].scopes()
	}
	var all []string
	for _, req := range reqs {
		for _, scope := range req.scopes() {
			if !slices.Contains(all, scope) {
				all = append(all, scope)
			}
		}
	}
	return all
}
