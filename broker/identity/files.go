package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// DefaultPoll is how often files are looked at.
	DefaultPoll = time.Second

	// MaxFile is the largest file that is read, in bytes.
	MaxFile = 1 << 20
)

// Files names the replica's own files, as spiffe-helper and cert-manager write them.
type Files struct {
	Cert   string // the SVID, and after it the intermediates; PEM
	Key    string // its private key, PKCS #8; may be the same file
	Bundle string // the authorities of the SVID's own trust domain, as PEM or as a SPIFFE bundle document
}

// FromFiles follows files by their content, so it does not matter whether a writer replaces, rewrites
// or links them. One that is missing or half-written is logged once, and what there was stays in use.
//
// The bundle is taken as soon as it is whole, so an authority is withdrawn by taking it out, even the
// one that signed the replica's own SVID. An SVID is taken when it fits its key and the bundle.
func FromFiles(f Files, log *slog.Logger) *Source { return newSource(f, log) }

func (f Files) String() string {
	return fmt.Sprintf("the files %s, %s and %s", f.Cert, f.Key, f.Bundle)
}

// Check looks at the files once, and says what keeps them from being an identity at that time.
func (f Files) Check(at time.Time) error {
	cert, errCert := readFile("certificate", f.Cert)
	key, errKey := readFile("key", f.Key)
	text, errBundle := readFile("bundle", f.Bundle)
	if err := errors.Join(errCert, errKey, errBundle); err != nil {
		return err
	}
	svid, err := f.parseSVID(cert, key, nil)
	if err != nil {
		return err
	}
	bundle, err := f.parseBundle(svid.ID.TrustDomain(), text, nil)
	if err != nil {
		return err
	}
	return f.fit(svid, bundle, at)
}

func (f Files) follow(ctx context.Context, s *Source) error {
	tick := time.NewTicker(s.Poll)
	defer tick.Stop()
	var last look
	for {
		last = f.look(s, last)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// look is what one look at the files has found.
type look struct {
	digest [sha256.Size]byte
	err    error // what could not be taken
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// look takes what can be taken. Files that were taken whole before are not parsed again.
func (f Files) look(s *Source, last look) look {
	cert, errCert := readFile("certificate", f.Cert)
	key, errKey := readFile("key", f.Key)
	bundle, errBundle := readFile("bundle", f.Bundle)
	next := look{svid: last.svid, bundle: last.bundle, err: errors.Join(errCert, errKey, errBundle)}
	hash := sha256.New()
	for _, text := range [][]byte{cert, key, bundle} {
		fmt.Fprintf(hash, "%d\n%s", len(text), text)
	}
	hash.Sum(next.digest[:0])
	if next.err == nil && last.err == nil && next.digest == last.digest {
		s.confirm()
		return last
	}
	var svid *x509svid.SVID // the one in the files, if there is one
	if errCert == nil && errKey == nil {
		var err error
		svid, err = f.parseSVID(cert, key, last.svid)
		next.err = errors.Join(next.err, err)
	}
	if errBundle == nil {
		errBundle = next.take(f, svid, bundle, s.now())
		next.err = errors.Join(next.err, errBundle)
	} else if svid != nil && last.bundle != nil && f.fit(svid, last.bundle, s.now()) == nil {
		next.svid = svid
	}
	f.report(s, last, next, errBundle == nil || errors.Is(errBundle, errFit))
	return next
}

// errFit: the SVID was not signed by an authority of the bundle, or not for now.
var errFit = errors.New("do not fit together")

// take takes the bundle, and the SVID when it fits. One that does not is left for the next look: its
// bundle, or its time, may yet come.
func (l *look) take(f Files, svid *x509svid.SVID, text []byte, now time.Time) error {
	var misfit error
	if svid != nil {
		b, err := f.parseBundle(svid.ID.TrustDomain(), text, l.bundle)
		if err != nil {
			return err
		}
		if misfit = f.fit(svid, b, now); misfit == nil {
			l.svid, l.bundle = svid, b
			return nil
		}
	}
	if l.svid == nil {
		return misfit
	}
	b, err := f.parseBundle(l.svid.ID.TrustDomain(), text, l.bundle)
	if err != nil {
		return err
	}
	l.bundle = b
	return misfit
}

// report hands on what has changed, and says what could not be taken, once for each content.
func (f Files) report(s *Source, last, next look, heard bool) {
	if next.svid != nil && (next.svid != last.svid || next.bundle != last.bundle) {
		s.replace(next.svid, x509bundle.NewSet(next.bundle))
	}
	if heard {
		s.confirm()
	} else {
		s.lose()
	}
	if next.err != nil && (last.err == nil || next.digest != last.digest || next.err.Error() != last.err.Error()) {
		s.miss(next.err)
	}
}

// parseSVID returns the one before when the chain is the same.
func (f Files) parseSVID(cert, key []byte, before *x509svid.SVID) (*x509svid.SVID, error) {
	if err := whole(cert); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Cert, err)
	}
	if err := whole(key); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Key, err)
	}
	svid, err := x509svid.Parse(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s with the key %s: %w (the key must be PKCS #8, BEGIN PRIVATE KEY)", f.Cert, f.Key, err)
	}
	if before != nil && slices.EqualFunc(before.Certificates, svid.Certificates, (*x509.Certificate).Equal) {
		return before, nil
	}
	return svid, nil
}

// parseBundle returns the one before when it says the same.
func (f Files) parseBundle(td spiffeid.TrustDomain, text []byte, before *x509bundle.Bundle) (*x509bundle.Bundle, error) {
	d, err := parseBundle(td, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Bundle, err)
	}
	if before != nil && before.Equal(d.bundle) {
		return before, nil
	}
	return d.bundle, nil
}

func (f Files) fit(svid *x509svid.SVID, bundle *x509bundle.Bundle, now time.Time) error {
	if _, _, err := x509svid.Verify(svid.Certificates, bundle, x509svid.WithTime(now)); err != nil {
		return fmt.Errorf("%s and %s %w: %w", f.Cert, f.Bundle, errFit, err)
	}
	return nil
}

func readFile(what, path string) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("no %s file was named", what)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the %s file: %w", what, err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("the %s file: %w", what, err)
	}
	if len(text) > MaxFile {
		return nil, fmt.Errorf("the %s file %s is larger than %d bytes", what, path, MaxFile)
	}
	return text, nil
}
