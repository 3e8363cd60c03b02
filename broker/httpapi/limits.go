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
	err := errors.Join(
		complete("IssueRate", &l.IssueRate, DefaultIssueRate, 1, MaxRate),
		complete("IssueBurst", &l.IssueBurst, DefaultIssueBurst, 1, MaxRate),
		complete("Rate", &l.Rate, DefaultRate, 1, MaxRate),
		complete("Burst", &l.Burst, DefaultBurst, 1, MaxRate),
		complete("Connections", &l.Connections, DefaultConnections, 1, MaxConnections),
		complete("PerAddress", &l.PerAddress, DefaultPerAddress, 1, MaxConnections),
		complete("Handshakes", &l.Handshakes, DefaultHandshakes, 1, MaxConnections),
		complete("Issuing", &l.Issuing, DefaultIssuing, 1, MaxAtOnce),
		complete("Others", &l.Others, DefaultOthers, 1, MaxAtOnce),
		complete("HandshakeTime", &l.HandshakeTime, DefaultHandshakeTime, MinHandshakeTime, MaxHandshakeTime),
		complete("ConnectionAge", &l.ConnectionAge, DefaultConnectionAge, MinConnectionAge, MaxConnectionAge),
	)
	// Peers that never say who they are must not take all.
	l.Handshakes = min(l.Handshakes, max(1, l.Connections/2))
	return err
}

func complete[T int | time.Duration](name string, value *T, standard, least, most T) error {
	if *value == 0 {
		*value = standard
	}
	if *value < least || *value > most {
		return fmt.Errorf("%s is %v; it must be %v to %v, or zero for %v", name, *value, least, most, standard)
	}
	return nil
}

// rateLimited is a request over its sender's rate.
type rateLimited struct{ wait time.Duration }

func (e *rateLimited) Error() string {
	return fmt.Sprintf("the sender has sent too many requests of this kind; the next one is taken in %s", e.wait.Round(time.Millisecond))
}

// errOverloaded: the replica has as much to do as it takes on at once.
var errOverloaded = errors.New("as many requests of this kind as are taken on at once are being worked on")
