package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ErrNoSVID: the source has not delivered yet, so nobody can be served and nobody is believed.
var ErrNoSVID = errors.New("no SVID yet")

// Source has the broker's own X509-SVID and the bundles of all trust domains that it knows. They are
// replaced together, under a generation that rises. It is a x509svid.Source and a x509bundle.Source.
type Source struct {
	// MaxSVIDLife is the longest life of a peer's SVID, from NotBefore to NotAfter;
	// DefaultMaxSVIDLife when zero. Set it before Run.
	MaxSVIDLife time.Duration
	// Now is the clock; nil is time.Now. Set it before Run.
	Now func() time.Time

	from origin
	log  *slog.Logger

	current atomic.Pointer[trust]
	started atomic.Bool
	ready   chan struct{} // closed when the first SVID is there
	ended   chan struct{} // closed when Run has returned

	mu     sync.Mutex
	answer error // the last answer that was not an SVID; nil after one that was
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
	return &Source{from: from, log: log, ready: make(chan struct{}), ended: make(chan struct{})}
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
	err := s.from.follow(ctx, s)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = fmt.Errorf("identity: %s: %w", s.from, err)
	s.miss(err)
	return err
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

// replace puts a new trust in the place of the old one. Only the goroutine of Run calls it.
func (s *Source) replace(svid *x509svid.SVID, bundles *x509bundle.Set) {
	certificate := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	generation := s.Generation() + 1
	s.current.Store(&trust{generation: generation, svid: svid, certificate: certificate, bundles: bundles})
	if generation == 1 {
		close(s.ready)
	}
	s.mu.Lock()
	s.answer = nil
	s.mu.Unlock()
	s.log.Info("identity: SVID and bundles replaced", "id", svid.ID.String(), "generation", generation,
		"not_after", svid.Certificates[0].NotAfter, "trust_domains", bundles.Len())
}

// miss keeps what the source said instead of an SVID, and logs it. What was there stays.
func (s *Source) miss(err error) {
	s.mu.Lock()
	s.answer = err
	s.mu.Unlock()
	s.log.Warn("identity: no new SVID; what there was stays in use", "source", s.from.String(), "error", err)
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
