// Package policy answers the one question: may this workload have this. Use Ceiling.
//
// Ceiling grants what the workload's registration, the audience's registration and the task's own
// ceiling have in common, and refuses a request that names anything beyond: it never narrows in
// silence. It has no state and no I/O; the same question always has the same answer.
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
)

// Decide implements broker.Policy. It never returns an error.
func (c Ceiling) Decide(_ context.Context, ask broker.Ask) (broker.Decision, error) {
	var d broker.Decision
	switch ask.Action {
	case broker.ActionBegin:
		d = begin(ask)
	case broker.ActionIssue:
		d = issue(ask)
	default:
		d = deny(RuleWithin, fmt.Sprintf("action %q is not known", ask.Action))
	}
	d.ID = broker.NewDecisionID()
	if c.Revision != nil {
		d.Revision = c.Revision()
	}
	return d, nil
}

// begin gives the task the ceiling that it asked for, or the registered one for a part that it
// left empty.
func begin(ask broker.Ask) broker.Decision {
	registered := ask.Workload.Ceiling
	if len(registered) == 0 {
		d := deny(RuleNoCeiling, fmt.Sprintf("the registration of %s allows no audience", ask.Workload.ID))
		d.Missing = map[string]string{"ceiling": "a ceiling in the workload's registration"}
		return d
	}
	audiences := ask.Task.Ceiling.Audiences
	if len(audiences) == 0 {
		audiences = slices.Sorted(maps.Keys(registered))
	}
	var allowed broker.Scopes
	for _, audience := range audiences {
		scopes, ok := registered[audience]
		if !ok {
			return denyAudience(ask.Workload, audience)
		}
		allowed = append(allowed, scopes...)
	}
	slices.Sort(allowed)
	allowed = slices.Compact(allowed)
	scopes := ask.Task.Ceiling.Scopes
	if len(scopes) == 0 {
		scopes = allowed
	}
	if beyond := scopes.Minus(allowed); len(beyond) > 0 {
		return denyScopes(ask.Workload, strings.Join(audiences, ", "), beyond, scopes.Intersect(allowed))
	}
	var known []string
	for _, audience := range ask.Audiences {
		known = append(known, audience.DetailTypes...)
	}
	if unknown := ask.Task.Ceiling.Details.Unknown(known); len(unknown) > 0 {
		return denyDetail(strings.Join(audiences, ", "), unknown[0])
	}
	return broker.Decision{
		Allowed: true, Rule: RuleWithin, Detail: "within the registered ceiling",
		Ceiling: broker.Ceiling{Audiences: audiences, Scopes: scopes, Details: ask.Task.Ceiling.Details},
	}
}

func issue(ask broker.Ask) broker.Decision {
	registered, ok := ask.Workload.Ceiling[ask.Audience.Name]
	if !ok {
		return denyAudience(ask.Workload, ask.Audience.Name)
	}
	most := registered.Intersect(ask.Audience.Scopes).Intersect(ask.Task.Ceiling.Scopes)
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
		return denyScopes(ask.Workload, ask.Audience.Name, beyond, scopes.Intersect(most))
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
