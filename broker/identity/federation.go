package identity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxFederated is how many trust domains may be federated by configuration.
const MaxFederated = 100

// How often a bundle endpoint is asked. It says how often itself, within these bounds.
const (
	MinRefresh     = time.Minute
	DefaultRefresh = 5 * time.Minute
	MaxRefresh     = time.Hour

	firstRetry = time.Second // after a failure; doubled up to MinRefresh
)

// Profile is how a bundle endpoint proves who it is (SPIFFE Federation, §5.2).
type Profile string

// The profiles.
const (
	HTTPSWeb    Profile = "https_web"    // by a certificate for its host name
	HTTPSSPIFFE Profile = "https_spiffe" // by an SVID of the trust domain itself
)

// Federation says where the bundle of another trust domain comes from: a file, or an endpoint.
type Federation struct {
	TrustDomain string // its name, as "partner.example"

	// File is looked at every Source.Poll: PEM, or a SPIFFE bundle document. One that is missing or
	// half-written counts as silence.
	File string

	URL        string  // the endpoint's, https; in place of File
	Profile    Profile // required with URL
	CAFile     string  // HTTPSWeb: PEM, who signs for the endpoint's host; the system's roots when empty
	EndpointID string  // HTTPSSPIFFE: the endpoint's SPIFFE ID, in TrustDomain
	Bootstrap  string  // HTTPSSPIFFE: a file as File, that the endpoint is known by until it has answered once

	// MaxAge is how long the bundle stays trusted when it cannot be read again: MinMaxAge to
	// MaxMaxAge, and DefaultMaxAge when zero.
	MaxAge time.Duration
}

// FederationError is a mistake in a Federation.
type FederationError struct {
	Index  int    // in what Federate was given
	Field  string // of Federation, as "MaxAge"
	Detail string // reads on from the field
}

func (e *FederationError) Error() string {
	return fmt.Sprintf("identity: federation %d: %s %s", e.Index, e.Field, e.Detail)
}

func wrong(field, format string, args ...any) error {
	return &FederationError{Field: field, Detail: fmt.Sprintf(format, args...)}
}

// Validate returns a *FederationError, or nil.
func (f Federation) Validate() error {
	td, err := spiffeid.TrustDomainFromString(f.TrustDomain)
	switch {
	case err != nil || td.Name() != f.TrustDomain:
		return wrong("TrustDomain", "is %q; it must be a name as partner.example, of lower-case letters, digits, '.', '-' and '_'", f.TrustDomain)
	case len(f.TrustDomain) > MaxTrustDomain:
		return wrong("TrustDomain", "has %d bytes; at most %d are allowed", len(f.TrustDomain), MaxTrustDomain)
	case f.File == "" && f.URL == "":
		return wrong("File", "is missing, and so is URL; name one of them")
	case f.File != "" && f.URL != "":
		return wrong("File", "is set, and so is URL; name one of them")
	}
	if err := checkAge(&f.MaxAge); err != nil {
		return wrong("MaxAge", "%v", err)
	}
	if f.File != "" {
		return f.onlyFor("a URL", "Profile", "CAFile", "EndpointID", "Bootstrap")
	}
	if u, err := url.Parse(f.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return wrong("URL", "is not https:// with a host, and without a user or a fragment")
	}
	switch f.Profile {
	case HTTPSWeb:
		return f.onlyFor(string(HTTPSSPIFFE), "EndpointID", "Bootstrap")
	case HTTPSSPIFFE:
		id, err := spiffeid.FromString(f.EndpointID)
		if err != nil || !id.MemberOf(td) || id.Path() == "" {
			return wrong("EndpointID", "is %q; it must be a SPIFFE ID with a path in the trust domain %s", f.EndpointID, td)
		}
		if f.Bootstrap == "" {
			return wrong("Bootstrap", "is missing; it is a file with a bundle of %s, to know the endpoint by", td)
		}
		return f.onlyFor(string(HTTPSWeb), "CAFile")
	}
	return wrong("Profile", "is %q; it must be %s or %s", f.Profile, HTTPSWeb, HTTPSSPIFFE)
}

// onlyFor wants fields to be empty that are for something else.
func (f Federation) onlyFor(what string, fields ...string) error {
	set := map[string]bool{"Profile": f.Profile != "", "CAFile": f.CAFile != "", "EndpointID": f.EndpointID != "", "Bootstrap": f.Bootstrap != ""}
	for _, field := range fields {
		if set[field] {
			return wrong(field, "is for %s; leave it out", what)
		}
	}
	return nil
}

// Federate names the trust domains that are trusted beside our own, by bundles from elsewhere than
// the source itself. Each is trusted by the bundle from there alone, whatever the Workload API has for
// it. It replaces what an earlier call has named; call it before Run. A mistake in an entry is a
// *FederationError.
func (s *Source) Federate(list ...Federation) error {
	if s.started.Load() {
		return errors.New("identity: Federate comes before Run")
	}
	if len(list) > MaxFederated {
		return fmt.Errorf("identity: %d federated trust domains; at most %d are allowed", len(list), MaxFederated)
	}
	var all []*foreign
	seen := map[string]bool{}
	for i, f := range list {
		err := f.Validate()
		if err == nil && seen[f.TrustDomain] {
			err = wrong("TrustDomain", "is %q, which another one names already", f.TrustDomain)
		}
		if mistake, ok := errors.AsType[*FederationError](err); ok {
			mistake.Index = i
			return mistake
		}
		seen[f.TrustDomain] = true
		if f.MaxAge == 0 {
			f.MaxAge = DefaultMaxAge
		}
		all = append(all, &foreign{Federation: f, td: spiffeid.RequireTrustDomainFromString(f.TrustDomain)})
	}
	s.foreign = all
	return nil
}

// foreign is a federated trust domain.
type foreign struct {
	Federation
	td spiffeid.TrustDomain

	// Of the goroutine that follows it.
	digest   [sha256.Size]byte // of the file that was taken last
	sequence *uint64           // of the document that was taken last; nil when it had none

	// Under Source.mu.
	bundle *x509bundle.Bundle // the last that was taken; nil before the first
	heard  time.Time          // when it was last confirmed; before the first, when Run began
	aged   bool               // it was said that it is too old
	failed string             // what was said about the last look; "" when it was good
}

func (f *foreign) expired(now time.Time) bool { return now.Sub(f.heard) > f.MaxAge }

// follow keeps the bundle up to date until ctx ends. The clock is looked at every Poll, so that a
// machine that was asleep asks at once.
func (f *foreign) follow(ctx context.Context, s *Source) error {
	tick := time.NewTicker(s.Poll)
	defer tick.Stop()
	retry := newPause(firstRetry, MinRefresh)
	due := s.now()
	for {
		if now := s.now(); !now.Before(due) {
			d, err := f.load(ctx, s)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			switch err = s.hear(f, d, err); {
			case f.File != "": // which costs nothing to look at
			case err != nil:
				due = now.Add(retry.Next())
			default:
				due = now.Add(f.pace(d.refresh))
				retry.Reset()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// pace is how long after a good answer the next is asked for.
func (f *foreign) pace(hint time.Duration) time.Duration {
	if hint == 0 {
		hint = DefaultRefresh
	}
	return min(max(hint, MinRefresh), MaxRefresh, f.MaxAge/4)
}

// load returns a document without a bundle for a file that has not changed.
func (f *foreign) load(ctx context.Context, s *Source) (document, error) {
	if f.URL != "" {
		return f.fetch(ctx, s)
	}
	text, err := readFile("bundle", f.File)
	if err != nil {
		return document{}, err
	}
	digest := sha256.Sum256(text)
	if digest == f.digest {
		return document{sequence: f.sequence}, nil
	}
	d, err := parseBundle(f.td, text)
	if err != nil {
		return document{}, fmt.Errorf("%s: %w", f.File, err)
	}
	// A file is put there by an operator, who may go back.
	f.digest, f.sequence = digest, nil
	return d, nil
}

// hear takes what was loaded, and says what could not be taken, once.
func (s *Source) hear(f *foreign, d document, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = f.checkSequence(d)
	}
	if err == nil && s.own.svid != nil && s.own.svid.ID.TrustDomain() == f.td {
		err = errors.New("it is our own trust domain, which no other source speaks for; take it out of the federated ones")
	}
	said := f.failed
	if err != nil {
		if f.failed = err.Error(); f.failed != said {
			s.log.Warn("identity: a federated bundle could not be read; what there was stays in use until it is too old",
				"trust_domain", f.TrustDomain, "max_age", f.MaxAge, "error", err)
		}
		return err
	}
	f.failed, f.heard, f.sequence = "", s.now(), d.sequence
	if d.bundle != nil && (f.bundle == nil || !f.bundle.Equal(d.bundle)) {
		f.bundle = d.bundle
	}
	s.renew()
	return nil
}

// checkSequence refuses a document that is older than the one before.
func (f *foreign) checkSequence(d document) error {
	switch {
	case f.sequence == nil:
		return nil
	case d.sequence == nil:
		return fmt.Errorf("the bundle has no sequence number, and the one before had %d; if that is meant, start the replica again", *f.sequence)
	case *d.sequence < *f.sequence:
		return fmt.Errorf("the bundle's sequence number is %d, and the one before had %d; if that is meant, start the replica again", *d.sequence, *f.sequence)
	}
	return nil
}
