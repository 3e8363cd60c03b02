package brokertest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/policy"
	"github.com/errandhq/errand/broker/registry"
)

// inventory is a registry file, or everybody whom the test names; with the hosts and servers of the
// test on top.
type inventory struct {
	file   *registry.Registry // nil with AllowAll
	server func(audience string) spiffeid.ID

	mu    sync.Mutex // guards named
	named map[string]*named
}

// named is what the test has said of an audience.
type named struct{ hosts []string }

// domainOf is the trust domain of most workloads of a registry.
func domainOf(r *registry.Registry) (most spiffeid.TrustDomain, err error) {
	counts := r.TrustDomains()
	if len(counts) == 0 {
		return most, errors.New("the inventory registers no workload; register those that the test is about")
	}
	for td, n := range counts {
		if n > counts[most] || n == counts[most] && td.Compare(most) < 0 {
			most = td
		}
	}
	return most, nil
}

// Workload implements broker.Registry.
func (i *inventory) Workload(id spiffeid.ID) (broker.WorkloadRegistration, error) {
	if i.file != nil {
		return i.file.Workload(id)
	}
	return broker.WorkloadRegistration{
		ID: id, Owner: "the test", Purpose: "a test", MaxLife: broker.MaxTokenLife,
		MaxTasks: registry.DefaultMaxTasks, MaxGrants: registry.DefaultMaxGrants,
	}, nil
}

// Workloads implements broker.Registry. Without a file there are none: any workload will do.
func (i *inventory) Workloads() []broker.WorkloadRegistration {
	if i.file == nil {
		return nil
	}
	return i.file.Workloads()
}

// Audience implements broker.Registry.
func (i *inventory) Audience(name string) (broker.AudienceRegistration, error) {
	audience := broker.AudienceRegistration{Name: name, Owner: "the test", MaxLife: broker.MaxTokenLife}
	if i.file != nil {
		var err error
		if audience, err = i.file.Audience(name); err != nil {
			return audience, err
		}
	}
	if server := i.server(name); !slices.Contains(audience.Servers, server) {
		audience.Servers = append(slices.Clone(audience.Servers), server)
	}
	audience.Hosts = append(slices.Clone(audience.Hosts), i.hosts(name)...)
	return audience, nil
}

// Serves implements broker.Registry.
func (i *inventory) Serves(id spiffeid.ID) []string {
	names := []string(i.names())
	if i.file != nil {
		names = append(names, i.file.Serves(id)...)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		audience, err := i.Audience(name)
		return err != nil || !slices.Contains(audience.Servers, id)
	})
}

// Source implements broker.Registry.
func (i *inventory) Source(id spiffeid.ID) (broker.SourceRegistration, error) {
	if i.file != nil {
		return i.file.Source(id)
	}
	return broker.SourceRegistration{}, broker.ErrUnregistered
}

// SourceByToken implements broker.Registry.
func (i *inventory) SourceByToken(digest [sha256.Size]byte) (broker.SourceRegistration, error) {
	if i.file != nil {
		return i.file.SourceByToken(digest)
	}
	return broker.SourceRegistration{}, broker.ErrUnregistered
}

// Revision implements server.Inventory.
func (i *inventory) Revision() string {
	if i.file != nil {
		return i.file.Revision()
	}
	return "brokertest"
}

func (i *inventory) hosts(audience string) []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if n := i.named[audience]; n != nil {
		return n.hosts
	}
	return nil
}

// name notes that the test has named an audience, perhaps with a host of it.
func (i *inventory) name(audience string, hosts ...string) error {
	if _, err := broker.ParseAudiences([]string{audience}); err != nil {
		return err
	}
	if i.file != nil {
		if _, err := i.file.Audience(audience); err != nil {
			return fmt.Errorf("the audience %q is not in the inventory", audience)
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.named[audience] == nil {
		i.named[audience] = &named{}
	}
	i.named[audience].hosts = append(slices.Clone(i.named[audience].hosts), hosts...)
	return nil
}

func (i *inventory) names() broker.Audiences {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := slices.Sorted(maps.Keys(i.named))
	return all[:min(len(all), broker.MaxAudiences)]
}

// The rules that a decision can name here.
const (
	ruleAllowAll = "brokertest/allow-all"
	ruleDenyNext = "brokertest/deny-next"
)

// rules is the policy: the file's ceilings, or all that is asked for, but for what the test wants
// denied.
type rules struct {
	inventory *inventory
	ceiling   policy.Ceiling

	mu   sync.Mutex // guards deny
	deny []string   // reasons of the denials to come
}

func newRules(i *inventory) *rules {
	return &rules{inventory: i, ceiling: policy.Ceiling{Revision: i.Revision}}
}

// Decide implements broker.Policy.
func (p *rules) Decide(ctx context.Context, ask broker.Ask) (broker.Decision, error) {
	if reason, ok := p.next(); ok {
		return p.decision(broker.Decision{Rule: ruleDenyNext, Detail: reason}), nil
	}
	if p.inventory.file != nil {
		return p.ceiling.Decide(ctx, ask)
	}
	if ask.Action == broker.ActionBegin {
		ceiling := ask.Task.Ceiling
		if len(ceiling.Audiences) == 0 {
			ceiling.Audiences = p.inventory.names()
		}
		return p.decision(broker.Decision{Allowed: true, Rule: ruleAllowAll, Detail: "everything is allowed", Ceiling: ceiling}), nil
	}
	if ask.Action == broker.ActionDelegate {
		return p.decision(broker.Decision{Allowed: true, Rule: ruleAllowAll, Detail: "everything is allowed", Ceiling: ask.Ceiling}), nil
	}
	return p.decision(allow(ask)), nil
}

// allow grants what the task has named when it began.
func allow(ask broker.Ask) broker.Decision {
	scopes := ask.Scopes
	if len(scopes) == 0 {
		scopes = ask.Task.Ceiling.Scopes
	}
	if beyond := scopes.Minus(ask.Task.Ceiling.Scopes); len(scopes) == 0 || len(beyond) > 0 {
		return broker.Decision{
			Rule: ruleAllowAll, Detail: fmt.Sprintf("a task gets the scopes that it has named when it began, and it has named %q", ask.Task.Ceiling.Scopes),
			Missing: map[string]string{"scope": "scopes in the TaskSpec; or use WithInventory, where they can be left to the registered ceiling"},
		}
	}
	return broker.Decision{Allowed: true, Rule: ruleAllowAll, Detail: "everything is allowed", Scopes: scopes, Life: ask.Life}
}

func (p *rules) decision(d broker.Decision) broker.Decision {
	d.ID, d.Revision = broker.NewDecisionID(), p.inventory.Revision()
	return d
}

// next takes the reason of a denial that the test wants.
func (p *rules) next() (reason string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.deny) == 0 {
		return "", false
	}
	reason, p.deny = p.deny[0], p.deny[1:]
	return reason, true
}

// DenyNext has the policy deny the next begin or token that it is asked for, for that reason. A
// second call denies the one after that.
func (b *Broker) DenyNext(reason string) {
	b.policy.mu.Lock()
	defer b.policy.mu.Unlock()
	b.policy.deny = append(b.policy.deny, reason)
}
