package brokertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/internal/steer"
	"github.com/errandhq/errand/sdk/verify"
)

// checks is which scopes a verifier has looked for.
type checks struct {
	mu   sync.Mutex
	seen map[check]bool
}

// check is one scope at an audience, of a workload's token.
type check struct{ workload, audience, scope string }

// follow notes what a verifier checks, beside what its own hook does.
func (c *checks) follow(config *verify.Config) {
	own := config.Hooks.OnCheck
	config.Hooks.OnCheck = func(ctx context.Context, g *verify.Grant, scopes []string, err error) {
		c.mu.Lock()
		for _, scope := range scopes {
			if c.seen == nil {
				c.seen = map[check]bool{}
			}
			c.seen[check{g.Workload, g.Audience, scope}] = true
		}
		c.mu.Unlock()
		if own != nil {
			own(ctx, g, scopes, err)
		}
	}
}

func (c *checks) has(one check) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[one]
}

// Grants is everything that was issued so far, in that order, also what has ended since.
func (b *Broker) Grants() []verify.Grant {
	var all []verify.Grant
	for _, i := range b.store.grants() {
		g := verify.Grant{
			ID: string(i.ID), Workload: i.Workload.String(), Client: i.Workload.String(), Audience: i.Audience, Scopes: i.Scopes,
			Task:   verify.Task{ID: string(i.task.ID), Root: string(i.task.Root()), Name: i.task.Name},
			Issued: i.Issued, Expires: i.Expires, Bound: i.Binding == broker.BindCertificate,
		}
		for _, id := range i.task.Path {
			g.Task.Path = append(g.Task.Path, string(id))
		}
		all = append(all, g)
	}
	return all
}

// AssertIssued fails the test unless a token for the audience with all the scopes was issued.
func (b *Broker) AssertIssued(tb TB, audience string, scopes ...string) {
	tb.Helper()
	var had []string
	for _, g := range b.Grants() {
		if g.Audience == audience && !slices.ContainsFunc(scopes, func(s string) bool { return !g.Has(s) }) {
			return
		}
		had = append(had, fmt.Sprintf("%s for %s %q", g.ID, g.Audience, g.Scopes))
	}
	tb.Errorf("brokertest: no token for %s with %q was issued; there were %s", audience, scopes, list(had))
}

// AssertNoneLive fails the test if a token that a client has got is still good. Those of Token do not
// count.
func (b *Broker) AssertNoneLive(tb TB) {
	tb.Helper()
	live, err := b.live()
	if err != nil {
		tb.Fatalf("brokertest: %v", err)
	}
	if len(live) > 0 {
		tb.Errorf("brokertest: tokens are alive that should not be: %s", list(slices.Concat(slices.Collect(maps.Values(live))...)))
	}
}

// AssertLeastPrivilege fails the test if a workload has got a token with a scope that no verifier of
// this broker has looked for in a request of that workload: it asks for too much, or the test does not
// do all that it does. Those of Token do not count.
func (b *Broker) AssertLeastPrivilege(tb TB) {
	tb.Helper()
	var unused []string
	for _, i := range b.store.grants() {
		for _, scope := range i.Scopes {
			one := check{i.Workload.String(), i.Audience, scope}
			text := fmt.Sprintf("%s at %s, got by %s in %q", scope, i.Audience, i.Workload, i.task.Name)
			if !b.store.owns(i.task.ID) && !b.checked.has(one) && !slices.Contains(unused, text) {
				unused = append(unused, text)
			}
		}
	}
	if len(unused) > 0 {
		tb.Errorf("brokertest: scopes that nobody has looked for; ask for less, or have the test use them: %s", list(unused))
	}
}

// live has the grants that are alive, in words, by task. Those of Token are left out.
func (b *Broker) live() (map[broker.TaskID][]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	live := map[broker.TaskID][]string{}
	for _, i := range b.store.grants() {
		if b.store.owns(i.task.ID) {
			continue
		}
		// One that is not known any more has ended long ago.
		status, err := b.server.Broker().Grant(ctx, broker.Workload{ID: i.Workload}, i.ID)
		if ctx.Err() != nil {
			return nil, err
		}
		if err == nil && status.Live {
			live[i.task.ID] = append(live[i.task.ID], fmt.Sprintf("%s for %s %q", i.ID, i.Audience, []string(i.Scopes)))
		}
	}
	return live, nil
}

// checkLeaks fails the test for tasks that it has left open.
func (b *Broker) checkLeaks() {
	b.tb.Helper()
	if b.leaks {
		return
	}
	live, err := b.live()
	if err == nil {
		var open []broker.Task
		if open, err = b.open(); err == nil && len(open) > 0 {
			var lines []string
			for _, t := range open {
				lines = append(lines, fmt.Sprintf("%s %q of %s, with %d live tokens: %s", t.ID, t.Name, t.Workload, len(live[t.ID]), list(live[t.ID])))
			}
			b.tb.Errorf("brokertest: tasks were left open; end them (Do does by itself), or use AllowLeaks: %s", list(lines))
		}
	}
	if err != nil {
		b.tb.Errorf("brokertest: looking for leaks: %v", err)
	}
}

// open are the tasks that are active and should not be: those of Token are the broker's own, those
// without heartbeats are meant to lapse, and some ends are still on their way.
func (b *Broker) open() ([]broker.Task, error) {
	b.mu.Lock()
	excused := maps.Clone(b.dropped)
	b.mu.Unlock()
	for _, c := range b.allClients() {
		for _, id := range steer.Unconfirmed(c) {
			excused[id] = true
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	var open []broker.Task
	for q := (broker.Query{}); ; {
		page, err := b.store.List(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, t := range page.Tasks {
			if !t.State.Final() && !excused[string(t.ID)] && !b.store.owns(t.ID) {
				open = append(open, t)
			}
		}
		if page.Next == "" {
			return open, nil
		}
		q.After = page.Next
	}
}

// list puts things below each other.
func list(things []string) string {
	if len(things) == 0 {
		return "none"
	}
	return "\n\t" + strings.Join(things, "\n\t")
}
