package broker

import "time"

// Action is what a policy is asked about.
type Action string

// The actions.
const (
	ActionBegin Action = "begin" // a task with a ceiling
	ActionIssue Action = "issue" // a token for one audience in a task
)

// Ask is everything that a policy may look at.
type Ask struct {
	Action   Action
	Workload WorkloadRegistration
	Task     Task // for ActionBegin the task as asked for

	// Audience is the audience asked about, for ActionIssue alone.
	Audience AudienceRegistration
	// Audiences are the registrations of the task's ceiling, or of the workload's when the task's
	// leaves them open, for ActionBegin alone.
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

	// Ceiling is what a begun task gets; for ActionBegin.
	Ceiling Ceiling
	// Scopes and Life are what a grant gets, never more than asked for; for ActionIssue.
	Scopes Scopes
	Life   time.Duration

	// Missing says of a denial what would have changed it: what is missing, and how to get it.
	Missing map[string]string
	// Instead has the scopes that would have been granted if only they had been asked for.
	Instead Scopes
}
