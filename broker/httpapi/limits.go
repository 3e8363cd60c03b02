package httpapi

import (
	"errors"
	"fmt"
	"time"
)

// Limits are what a replica takes on at most. Zero values are the defaults.
type Limits struct {
	// Of one SPIFFE ID at the workload listener: requests that issue, which begin a task or ask for a
	// token, and all others. Each has a rate a second, and a burst that may come at once.
	IssueRate, IssueBurst int
	Rate, Burst           int

	// Requests that are worked on at once at the workload listener: those that issue, and all others.
	Issuing, Others int
}

// Defaults of Limits. What a workload ends and keeps alive has ten times the rate of what it begins,
// so that it can always end.
const (
	DefaultIssueRate  = 100
	DefaultIssueBurst = 1000
	DefaultRate       = 1000
	DefaultBurst      = 5000
	DefaultIssuing    = 256
	DefaultOthers     = 1024

	// MaxRate and MaxAtOnce are the most that Limits may say.
	MaxRate   = 1_000_000
	MaxAtOnce = 100_000
)

// Complete fills in the defaults, and refuses what is out of bounds.
func (l *Limits) Complete() error {
	var wrong []error
	for _, each := range []struct {
		name          string
		value         *int
		standard, max int
	}{
		{"IssueRate", &l.IssueRate, DefaultIssueRate, MaxRate}, {"IssueBurst", &l.IssueBurst, DefaultIssueBurst, MaxRate},
		{"Rate", &l.Rate, DefaultRate, MaxRate}, {"Burst", &l.Burst, DefaultBurst, MaxRate},
		{"Issuing", &l.Issuing, DefaultIssuing, MaxAtOnce}, {"Others", &l.Others, DefaultOthers, MaxAtOnce},
	} {
		if *each.value == 0 {
			*each.value = each.standard
		}
		if *each.value < 1 || *each.value > each.max {
			wrong = append(wrong, fmt.Errorf("%s is %d; it must be 1 to %d, or zero for %d", each.name, *each.value, each.max, each.standard))
		}
	}
	return errors.Join(wrong...)
}

// rateLimited is a request over its sender's rate.
type rateLimited struct{ wait time.Duration }

func (e *rateLimited) Error() string {
	return fmt.Sprintf("this SPIFFE ID has sent too many requests of this kind; the next one is taken in %s", e.wait.Round(time.Millisecond))
}

// overloaded is a replica that has as much to do as it takes on at once.
var errOverloaded = errors.New("as many requests of this kind as are taken on at once are being worked on")
