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

	// Connections of each listener: all, those of one peer address (of IPv6, of its /64), and those
	// that have not brought a request yet, which are half of all at most.
	Connections, PerAddress, Handshakes int

	// HandshakeTime is how long a connection may take for its TLS handshake, and each request for its header.
	HandshakeTime time.Duration

	// ConnectionAge is when a connection is closed with its next answer, give or take a tenth.
	ConnectionAge time.Duration
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

	DefaultConnections   = 8192
	DefaultPerAddress    = 4096
	DefaultHandshakes    = 1024
	DefaultHandshakeTime = 5 * time.Second
	DefaultConnectionAge = time.Hour

	// MaxRate and MaxAtOnce are the most that Limits may say.
	MaxRate          = 1_000_000
	MaxAtOnce        = 100_000
	MaxConnections   = 1_000_000
	MinHandshakeTime = time.Second
	MaxHandshakeTime = ReadTimeout
	MinConnectionAge = time.Second
	MaxConnectionAge = 24 * time.Hour
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
		{"Connections", &l.Connections, DefaultConnections, MaxConnections}, {"PerAddress", &l.PerAddress, DefaultPerAddress, MaxConnections},
		{"Handshakes", &l.Handshakes, DefaultHandshakes, MaxConnections},
		{"Issuing", &l.Issuing, DefaultIssuing, MaxAtOnce}, {"Others", &l.Others, DefaultOthers, MaxAtOnce},
	} {
		if *each.value == 0 {
			*each.value = each.standard
		}
		if *each.value < 1 || *each.value > each.max {
			wrong = append(wrong, fmt.Errorf("%s is %d; it must be 1 to %d, or zero for %d", each.name, *each.value, each.max, each.standard))
		}
	}
	for _, each := range []struct {
		name               string
		value              *time.Duration
		standard, min, max time.Duration
	}{
		{"HandshakeTime", &l.HandshakeTime, DefaultHandshakeTime, MinHandshakeTime, MaxHandshakeTime},
		{"ConnectionAge", &l.ConnectionAge, DefaultConnectionAge, MinConnectionAge, MaxConnectionAge},
	} {
		if *each.value == 0 {
			*each.value = each.standard
		}
		if *each.value < each.min || *each.value > each.max {
			wrong = append(wrong, fmt.Errorf("%s is %s; it must be %s to %s, or zero for %s", each.name, *each.value, each.min, each.max, each.standard))
		}
	}
	// Peers that never say who they are must not take all.
	l.Handshakes = min(l.Handshakes, max(1, l.Connections/2))
	return errors.Join(wrong...)
}

// rateLimited is a request over its sender's rate.
type rateLimited struct{ wait time.Duration }

func (e *rateLimited) Error() string {
	return fmt.Sprintf("the sender has sent too many requests of this kind; the next one is taken in %s", e.wait.Round(time.Millisecond))
}

// overloaded is a replica that has as much to do as it takes on at once.
var errOverloaded = errors.New("as many requests of this kind as are taken on at once are being worked on")
