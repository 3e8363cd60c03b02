package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sync/errgroup"
)

// ErrNoSVID: the source has not delivered yet, so nobody can be served and nobody is believed.
var ErrNoSVID = errors.New("no SVID yet")

// How long a bundle is trusted that could not be read again.
const (
	DefaultMaxAge = 24 * time.Hour
	MinMaxAge     = 5 * time.Minute
	MaxMaxAge     = 30 * 24 * time.Hour
)

// Source has the broker's own X509-SVID and the bundles of all trust domains that it trusts. They are
// replaced together, under a generation that rises. It is a x509svid.Source and a x509bundle.Source.
type Source struct {
	// MaxSVIDLife is the longest life of a peer's SVID, from NotBefore to NotAfter;
	// DefaultMaxSVIDLife when zero. Set it before Run.
	MaxSVIDLife time.Duration
	// MaxAge is how long the bundles of the Workload API, or of Files, stay trusted when it has gone
	// silent or they cannot be read: MinMaxAge to MaxMaxAge, and DefaultMaxAge when zero. Set it
	// before Run.
	MaxAge time.Duration
	// Poll is how often files are looked at, and ages; DefaultPoll when zero. Set it before Run.
	Poll time.Duration
	// Now is the clock; nil is time.Now. Set it before Run.
	Now func() time.Time

	from    origin
	foreign []*foreign    // what Federate has named
	fetch   time.Duration // FetchTimeout
	log     *slog.Logger

	current atomic.Pointer[trust]
	started atomic.Bool
	ready   chan struct{} // closed when the first SVID is there
	ended   chan struct{} // closed when Run has returned

	mu     sync.Mutex // guards what follows, and what is marked in foreign
	answer error      // the last answer that was not an SVID; nil after one that was
	own    delivery
}

// delivery is what the origin has delivered last.
type delivery struct {
	svid    *x509svid.SVID
	bundles *x509bundle.Set
	lost    time.Time // since when the origin is silent; zero while it is not
	aged    bool      // it has been silent for longer than MaxAge
}

// origin is where a Source gets its trust from.
type origin interface {
	fmt.Stringer
	// follow replaces the source's trust whenever there is a newer one, until ctx ends.
	follow(ctx context.Context, s *Source) error
}

// trust is what one generation consists of. It does not change.
type trust struct {
	generation  uint64
	svid        *x509svid.SVID
	certificate *tls.Certificate // the same, as crypto/tls has it
	bundles     *x509bundle.Set
}

func newSource(from origin, log *slog.Logger) *Source {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Source{from: from, fetch: FetchTimeout, log: log, ready: make(chan struct{}), ended: make(chan struct{})}
}

// String names where the SVID comes from.
func (s *Source) String() string { return s.from.String() }

// Run keeps the source up to date until ctx ends, and returns the context's error. Another error
// says what is wrong with the source for good. A Source runs once.
func (s *Source) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("identity: the source has been run already; make a new one")
	}
	defer close(s.ended)
	if err := s.complete(); err != nil {
		s.miss(err)
		return err
	}
	work, inner := errgroup.WithContext(ctx)
	work.Go(func() error { return s.from.follow(inner, s) })
	work.Go(func() error { return s.watchAges(inner) })
	for _, f := range s.foreign {
		work.Go(func() error { return f.follow(inner, s) })
	}
	err := work.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = fmt.Errorf("identity: %s: %w", s.from, err)
	s.miss(err)
	return err
}

// complete fills in the defaults, and starts the age of what is still to come.
func (s *Source) complete() error {
	if s.Poll <= 0 {
		s.Poll = DefaultPoll
	}
	if err := checkAge(&s.MaxAge); err != nil {
		return fmt.Errorf("identity: MaxAge %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.foreign {
		f.heard = s.now()
	}
	return nil
}

func checkAge(age *time.Duration) error {
	if *age == 0 {
		*age = DefaultMaxAge
	}
	if *age < MinMaxAge || *age > MaxMaxAge {
		return fmt.Errorf("is %v; it must be %v to %v, or zero for %v", *age, MinMaxAge, MaxMaxAge, DefaultMaxAge)
	}
	return nil
}

// watchAges looks for bundles that have become too old, or are not any more.
func (s *Source) watchAges(ctx context.Context) error {
	tick := time.NewTicker(s.Poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		s.mu.Lock()
		s.renew()
		s.mu.Unlock()
	}
}

// Wait returns nil as soon as there is an SVID. Otherwise it waits for ctx or Run to end, and its
// error names the source and the last thing that it said.
func (s *Source) Wait(ctx context.Context) error {
	cause := errors.New("the source has ended")
	select {
	case <-s.ready:
		return nil
	case <-s.ended:
	case <-ctx.Done():
		cause = ctx.Err()
	}
	if s.current.Load() != nil {
		return nil
	}
	return fmt.Errorf("identity: %w from %s: %w (last answer: %v)", ErrNoSVID, s.from, cause, s.lastAnswer())
}

func (s *Source) lastAnswer() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer == nil {
		return "none"
	}
	return s.answer
}

// GetX509SVID returns the broker's own SVID. It implements x509svid.Source.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	t, err := s.trust()
	if err != nil {
		return nil, err
	}
	return t.svid, nil
}

// GetX509BundleForTrustDomain returns the authorities of one trust domain. It implements
// x509bundle.Source.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	t, err := s.trust()
	if err != nil {
		return nil, err
	}
	return t.bundles.GetX509BundleForTrustDomain(td)
}

// Generation is 0 before the first SVID and rises with every replacement.
func (s *Source) Generation() uint64 {
	if t := s.current.Load(); t != nil {
		return t.generation
	}
	return 0
}

func (s *Source) trust() (*trust, error) {
	if t := s.current.Load(); t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("identity: %w from %s (last answer: %v)", ErrNoSVID, s.from, s.lastAnswer())
}

// Held returns the trust domains whose tasks may live: our own, those that are trusted now, and those
// that Federate named whose bundle has not come yet since Run began, for as long as MaxAge. It is nil
// before the first SVID.
func (s *Source) Held() []spiffeid.TrustDomain {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, now := s.current.Load(), s.now()
	if t == nil {
		return nil
	}
	held := []spiffeid.TrustDomain{t.svid.ID.TrustDomain()}
	for _, b := range t.bundles.Bundles() {
		if !b.Empty() {
			held = append(held, b.TrustDomain())
		}
	}
	for _, f := range s.foreign {
		if f.bundle == nil && !f.expired(now) {
			held = append(held, f.td)
		}
	}
	return held
}

// replace takes what the origin has delivered, in the place of all that it had before.
func (s *Source) replace(svid *x509svid.SVID, bundles *x509bundle.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = nil
	s.own.svid, s.own.bundles, s.own.lost = svid, bundles, time.Time{}
	s.renew()
}

// lose says that the origin is silent; what it delivered grows old from now on.
func (s *Source) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own.lost.IsZero() {
		s.own.lost = s.now()
	}
}

// confirm says that what the origin delivered is still what it says.
func (s *Source) confirm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own.lost = time.Time{}
	s.renew()
}

// renew puts a new trust in the place of the old one when it is another. The caller holds mu.
func (s *Source) renew() {
	svid := s.own.svid
	if svid == nil {
		return
	}
	bundles, old := s.trusted(), s.current.Load()
	if old != nil && old.svid == svid && slices.EqualFunc(bundles.Bundles(), old.bundles.Bundles(), sameBundle) {
		return
	}
	certificate := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	generation := s.Generation() + 1
	s.current.Store(&trust{generation: generation, svid: svid, certificate: certificate, bundles: bundles})
	if generation == 1 {
		close(s.ready)
	}
	s.log.Info("identity: SVID and bundles replaced", "id", svid.ID.String(), "generation", generation,
		"not_after", svid.Certificates[0].NotAfter, "trust_domains", bundles.Len())
}

// trusted is what there is to be trusted now. What Federate has named is trusted by that alone, and
// our own trust domain never by it. The caller holds mu.
func (s *Source) trusted() *x509bundle.Set {
	now, ours := s.now(), s.own.svid.ID.TrustDomain()
	set := x509bundle.NewSet()
	if aged := !s.own.lost.IsZero() && now.Sub(s.own.lost) > s.MaxAge; aged != s.own.aged {
		s.own.aged = aged
		s.sayAge(aged, "all of "+s.from.String(), s.MaxAge)
	}
	if !s.own.aged {
		for _, b := range s.own.bundles.Bundles() {
			set.Add(b)
		}
	}
	for _, f := range s.foreign {
		if f.td == ours {
			continue
		}
		set.Remove(f.td)
		if aged := f.expired(now); aged != f.aged {
			f.aged = aged
			s.sayAge(aged, f.td.Name(), f.MaxAge)
		}
		if !f.aged && f.bundle != nil {
			set.Add(f.bundle)
		}
	}
	return set
}

func (s *Source) sayAge(aged bool, what string, age time.Duration) {
	if aged {
		s.log.Error("identity: a bundle is too old, and nobody is trusted by it until it can be read again", "trust_domain", what, "max_age", age)
	} else {
		s.log.Info("identity: a bundle that was too old has been read again", "trust_domain", what)
	}
}

func sameBundle(a, b *x509bundle.Bundle) bool { return a == b || a.Equal(b) }

// miss keeps what the source said instead of an SVID, and logs it. What was there stays.
func (s *Source) miss(err error) {
	s.mu.Lock()
	s.answer = err
	s.mu.Unlock()
	s.log.Warn("identity: not all could be taken; what there was stays in use", "source", s.from.String(), "error", err)
}

// missAgain is miss for what may be said many times in a row; it is logged once.
func (s *Source) missAgain(err error) {
	s.mu.Lock()
	same := s.answer != nil && s.answer.Error() == err.Error()
	s.mu.Unlock()
	if !same {
		s.miss(err)
	}
}

func (s *Source) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}
