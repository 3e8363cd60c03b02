// Package policy answers the one question: may this workload have this. Use Ceiling.
//
// Ceiling grants what the workload's registration, the audience's registration and the task's own
// ceiling have in common, and refuses a request that names anything beyond: it never narrows in
// silence. In a task that is done in the name of others, each of them must be registered for it as well. It has
// no state and no I/O; the same question always has the same answer.
package policy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/errandhq/errand/broker"
)

// Ceiling is the policy that grants up to the registered ceilings.
type Ceiling struct {
	// Revision names the registry's revision in every decision.
	Revision func() string
}

// Rules that a decision can name.
const (
	RuleWithin      = "ceiling/within"
	RuleNoCeiling   = "ceiling/workload-has-none"
	RuleAudience    = "ceiling/audience"
	RuleScope       = "ceiling/scope"
	RuleUnknown     = "ceiling/scope-unknown-to-audience"
	RuleNothingLeft = "ceiling/nothing-left"
	RuleDetail      = "ceiling/detail-unknown-to-audience"
	RuleDelegate    = "delegation/unregistered"
)

// Decide implements broker.Policy. It never returns an error.
func (c Ceiling) Decide(_ context.Context, ask broker.Ask) (broker.Decision, error) {
	var d broker.Decision
	switch ask.Action {
	case broker.ActionBegin:
		d = ceiling(ask.Task.Ceiling, ask.Audiences, partiesOf(ask))
	case broker.ActionIssue:
		d = issue(ask, partiesOf(ask))
	case broker.ActionDelegate:
		d = delegate(ask)
	default:
		d = deny(RuleWithin, fmt.Sprintf("action %q is not known", ask.Action))
	}
	d.ID = broker.NewDecisionID()
	if c.Revision != nil {
		d.Revision = c.Revision()
	}
	return d, nil
}

// parties are those of whom each must be registered for what is asked for.
type parties []broker.WorkloadRegistration

func partiesOf(ask broker.Ask) parties {
	return append(parties{ask.Workload}, ask.Delegators...)
}

// delegate lets a registered workload have of the task what it could have by itself.
func delegate(ask broker.Ask) broker.Decision {
	if ask.Delegate == nil {
		d := deny(RuleDelegate, fmt.Sprintf("%s is not in the inventory, so it can join nothing", ask.To))
		d.Missing = map[string]string{"to": "a registration of that workload, with an owner, a purpose and a ceiling"}
		return d
	}
	return ceiling(ask.Ceiling, ask.Audiences, append(partiesOf(ask), *ask.Delegate))
}

// ceiling is the one that was asked for, or the registered one for a part that was left empty.
func ceiling(asked broker.Ceiling, registered []broker.AudienceRegistration, all parties) broker.Decision {
	for _, party := range all {
		if len(party.Ceiling) == 0 {
			d := deny(RuleNoCeiling, fmt.Sprintf("the registration of %s allows no audience", party.ID))
			d.Missing = map[string]string{"ceiling": "a ceiling in the workload's registration"}
			return d
		}
	}
	audiences := asked.Audiences
	if len(audiences) == 0 {
		audiences = all.audiences()
	}
	for _, audience := range audiences {
		if party, ok := all.without(audience); ok {
			return denyAudience(party, audience)
		}
	}
	allowed := all.scopes(audiences)
	scopes := asked.Scopes
	if len(scopes) == 0 {
		scopes = allowed
	}
	at := strings.Join(audiences, ", ")
	if len(all) > 1 && len(allowed) == 0 {
		d := deny(RuleNothingLeft, fmt.Sprintf("the registrations of %s have nothing in common", all))
		d.Missing = map[string]string{"scope": "a scope of one audience in the registered ceilings of all of them"}
		return d
	}
	if beyond := scopes.Minus(allowed); len(beyond) > 0 {
		return denyScopes(all.lacking(beyond, audiences), at, beyond, scopes.Intersect(allowed))
	}
	var known []string
	for _, audience := range registered {
		known = append(known, audience.DetailTypes...)
	}
	if unknown := asked.Details.Unknown(known); len(unknown) > 0 {
		return denyDetail(at, unknown[0])
	}
	return broker.Decision{
		Allowed: true, Rule: RuleWithin, Detail: "within the registered ceiling",
		Ceiling: broker.Ceiling{Audiences: audiences, Scopes: scopes, Details: asked.Details},
	}
}

func issue(ask broker.Ask, all parties) broker.Decision {
	if party, ok := all.without(ask.Audience.Name); ok {
		return denyAudience(party, ask.Audience.Name)
	}
	at := broker.Audiences{ask.Audience.Name}
	most := all.scopes(at).Intersect(ask.Audience.Scopes).Intersect(ask.Task.Ceiling.Scopes)
	scopes := ask.Scopes
	if len(scopes) == 0 {
		scopes = most
	}
	if unknown := scopes.Minus(ask.Audience.Scopes); len(unknown) > 0 {
		d := deny(RuleUnknown, fmt.Sprintf("audience %q does not know the scope %q", ask.Audience.Name, unknown))
		d.Instead = scopes.Intersect(most)
		return d
	}
	if beyond := scopes.Minus(most); len(beyond) > 0 {
		return denyScopes(all.lacking(beyond, at), ask.Audience.Name, beyond, scopes.Intersect(most))
	}
	if len(scopes) == 0 {
		d := deny(RuleNothingLeft, fmt.Sprintf("the task's scopes and those allowed at %q have nothing in common", ask.Audience.Name))
		d.Missing = map[string]string{"scope": "a scope of this audience in the task's ceiling"}
		return d
	}
	if unknown := ask.Details.Unknown(ask.Audience.DetailTypes); len(unknown) > 0 {
		return denyDetail(ask.Audience.Name, unknown[0])
	}
	return broker.Decision{
		Allowed: true, Rule: RuleWithin, Detail: "within the registered ceiling",
		Scopes: scopes, Life: ask.Life,
	}
}

// audiences are those that all parties are registered for.
func (all parties) audiences() broker.Audiences {
	names := slices.Sorted(maps.Keys(all[0].Ceiling))
	return slices.DeleteFunc(names, func(name string) bool {
		_, missing := all.without(name)
		return missing
	})
}

// without returns the first party that is not registered for the audience.
func (all parties) without(audience string) (broker.WorkloadRegistration, bool) {
	for _, party := range all {
		if _, ok := party.Ceiling[audience]; !ok {
			return party, true
		}
	}
	return broker.WorkloadRegistration{}, false
}

// scopes are those that all parties may ask for at one of the audiences.
func (all parties) scopes(audiences broker.Audiences) broker.Scopes {
	var allowed broker.Scopes
	for _, audience := range audiences {
		common := all[0].Ceiling[audience]
		for _, party := range all[1:] {
			common = common.Intersect(party.Ceiling[audience])
		}
		allowed = append(allowed, common...)
	}
	slices.Sort(allowed)
	return slices.Compact(allowed)
}

// lacking returns the first party that has not all of the scopes at the audiences. When each has them, though
// not at the same one, it is the last.
func (all parties) lacking(scopes broker.Scopes, audiences broker.Audiences) broker.WorkloadRegistration {
	for _, party := range all {
		if len(scopes.Minus(parties{party}.scopes(audiences))) > 0 {
			return party
		}
	}
	return all[len(all)-1]
}

// String names the parties.
func (all parties) String() string {
	var ids []string
	for _, party := range all {
		ids = append(ids, party.ID.String())
	}
	return strings.Join(ids, " and ")
}

func denyAudience(w broker.WorkloadRegistration, audience string) broker.Decision {
	d := deny(RuleAudience, fmt.Sprintf("the registration of %s does not allow audience %q", w.ID, audience))
	d.Missing = map[string]string{"audience": fmt.Sprintf("%s in the workload's registered ceiling; ask its owner, %s", audience, w.Owner)}
	return d
}

func denyScopes(w broker.WorkloadRegistration, audience string, beyond, instead broker.Scopes) broker.Decision {
	d := deny(RuleScope, fmt.Sprintf("the registration of %s does not allow %q at %s", w.ID, beyond, audience))
	d.Missing = map[string]string{"scope": fmt.Sprintf("%s in the workload's registered ceiling; ask its owner, %s", beyond, w.Owner)}
	d.Instead = instead
	return d
}

func denyDetail(audience, unknown string) broker.Decision {
	d := deny(RuleDetail, fmt.Sprintf("no registration of %s knows authorization details of the type %q", audience, unknown))
	d.Missing = map[string]string{"authorization_details": fmt.Sprintf("%q in the details of the audience's registration; ask its owner", unknown)}
	return d
}

func deny(rule, detail string) broker.Decision {
	return broker.Decision{Rule: rule, Detail: detail}
}
