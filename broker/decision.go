package broker

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Action is what a policy is asked about.
type Action string

// The actions.
const (
	ActionBegin    Action = "begin"    // a task with a ceiling
	ActionIssue    Action = "issue"    // a token for one audience in a task
	ActionDelegate Action = "delegate" // that another workload begins a task below one
)

// Ask is everything that a policy may look at.
type Ask struct {
	Action   Action
	Workload WorkloadRegistration
	Task     Task // for ActionBegin the task as asked for

	// Delegators are the registrations of the task's delegators, in their order: nobody gets in the name of
	// another what that one may not have. One that has left the inventory has nothing but its ID.
	Delegators []WorkloadRegistration

	// To is who may join the task, and Delegate its registration, nil when it has none; Ceiling is what it may
	// have there, as asked for, within the task's. For ActionDelegate alone.
	To       spiffeid.ID
	Delegate *WorkloadRegistration
	Ceiling  Ceiling

	// Audience is the audience asked about, for ActionIssue alone.
	Audience AudienceRegistration
	// Audiences are the registrations of the ceiling that is asked for, or of the workload's when that
	// leaves them open; not for ActionIssue.
	Audiences []AudienceRegistration
	// Scopes are those asked for; none means as many as may be.
	Scopes Scopes
	// Details are those asked for, all of them in the task's ceiling. They are allowed as they are,
	// or denied.
	Details Details
	// Life is what was asked for; zero means the default.
	Life time.Duration
}

// Decision is one answer of a policy. The zero value is a denial.
type Decision struct {
	ID       DecisionID
	Allowed  bool
	Rule     string // what decided
	Detail   string // why, in a sentence for the caller
	Revision string // the policy's

	// Ceiling is what a begun task gets, or the one that joins; not for ActionIssue.
	Ceiling Ceiling
	// Scopes and Life are what a grant gets, never more than asked for; for ActionIssue.
	Scopes Scopes
	Life   time.Duration

	// Missing says of a denial what would have changed it: what is missing, and how to get it.
	Missing map[string]string
	// Instead has the scopes that would have been granted if only they had been asked for.
	Instead Scopes
}
