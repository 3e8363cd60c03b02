package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
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

// Files names PEM files, as spiffe-helper and cert-manager write them.
type Files struct {
	Cert   string // the SVID, and after it the intermediates
	Key    string // its private key, PKCS #8; may be the same file
	Bundle string // the authorities of the SVID's own trust domain

	// Federated has the bundle files of other trust domains, by name as "partner.example".
	Federated map[string]string

	Poll time.Duration // DefaultPoll when zero
}

// FromFiles follows PEM files by their content, so it does not matter whether a writer replaces,
// rewrites or links them. A set that is half-written or does not fit together is ignored and logged
// once, and what there was stays in use. So an authority is withdrawn only together with the SVID
// that it signed, and a federated trust domain not by deleting its file: watch the log for a set that
// is refused.
func FromFiles(f Files, log *slog.Logger) *Source {
	if f.Poll <= 0 {
		f.Poll = DefaultPoll
	}
	f.Federated = maps.Clone(f.Federated)
	return newSource(f, log)
}

func (f Files) String() string {
	return fmt.Sprintf("the files %s, %s and %s", f.Cert, f.Key, f.Bundle)
}

func (f Files) follow(ctx context.Context, s *Source) error {
	tick := time.NewTicker(f.Poll)
	defer tick.Stop()
	var taken, refused [sha256.Size]byte
	for {
		set, err := f.read()
		switch {
		case err != nil:
			s.missAgain(err)
		case set.digest != taken:
			// A refused set is looked at again: its time may yet come.
			svid, bundles, err := set.parse(s.now())
			if err == nil {
				taken = set.digest
				s.replace(svid, bundles)
			} else if set.digest != refused {
				refused = set.digest
				s.miss(err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// content is what was in the files at one look.
type content struct {
	cert, key, bundle pemFile
	federated         map[spiffeid.TrustDomain]pemFile
	digest            [sha256.Size]byte
}

type pemFile struct {
	path string
	text []byte
}

func (f Files) read() (content, error) {
	c := content{federated: map[spiffeid.TrustDomain]pemFile{}}
	hash := sha256.New()
	for _, file := range []struct {
		what, path string
		into       *pemFile
	}{{"certificate", f.Cert, &c.cert}, {"key", f.Key, &c.key}, {"bundle", f.Bundle, &c.bundle}} {
		got, err := readFile(file.what, file.path)
		if err != nil {
			return content{}, err
		}
		*file.into = got
		fmt.Fprintf(hash, "%d\n%s", len(got.text), got.text)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Federated)) {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return content{}, fmt.Errorf("the federated trust domain %q: %w", name, err)
		}
		got, err := readFile("bundle of "+name, f.Federated[name])
		if err != nil {
			return content{}, err
		}
		c.federated[td] = got
		fmt.Fprintf(hash, "%d\n%s", len(got.text), got.text)
	}
	hash.Sum(c.digest[:0])
	return c, nil
}

func readFile(what, path string) (pemFile, error) {
	if path == "" {
		return pemFile{}, fmt.Errorf("no %s file was named", what)
	}
	file, err := os.Open(path)
	if err != nil {
		return pemFile{}, fmt.Errorf("the %s file: %w", what, err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return pemFile{}, fmt.Errorf("the %s file: %w", what, err)
	}
	if len(text) > MaxFile {
		return pemFile{}, fmt.Errorf("the %s file %s is larger than %d bytes", what, path, MaxFile)
	}
	return pemFile{path, text}, nil
}

// parse makes a trust of the files, or says what does not fit.
func (c content) parse(now time.Time) (*x509svid.SVID, *x509bundle.Set, error) {
	for _, file := range []pemFile{c.cert, c.key} {
		if err := file.whole(); err != nil {
			return nil, nil, err
		}
	}
	svid, err := x509svid.Parse(c.cert.text, c.key.text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s with the key %s: %w (the key must be PKCS #8, BEGIN PRIVATE KEY)", c.cert.path, c.key.path, err)
	}
	own, err := c.bundle.authorities(svid.ID.TrustDomain())
	if err != nil {
		return nil, nil, err
	}
	bundles := x509bundle.NewSet(own)
	for td, file := range c.federated {
		if td == svid.ID.TrustDomain() {
			return nil, nil, fmt.Errorf("%s is our own trust domain, so its bundle %s cannot be a federated one", td, file.path)
		}
		b, err := file.authorities(td)
		if err != nil {
			return nil, nil, err
		}
		bundles.Add(b)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, bundles, x509svid.WithTime(now)); err != nil {
		return nil, nil, fmt.Errorf("%s and %s do not fit together: %w", c.cert.path, c.bundle.path, err)
	}
	return svid, bundles, nil
}

// authorities wants certificates of authorities and nothing else. Empty is refused: a file is empty
// when somebody is about to write it.
func (f pemFile) authorities(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if err := f.whole(); err != nil {
		return nil, err
	}
	b, err := x509bundle.Parse(td, f.text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	if b.Empty() {
		return nil, fmt.Errorf("%s has no certificate", f.path)
	}
	for _, authority := range b.X509Authorities() {
		if !authority.IsCA {
			return nil, fmt.Errorf("%s has a certificate that is not an authority's (serial number %x)", f.path, authority.SerialNumber)
		}
	}
	return b, nil
}

// whole refuses a file that was cut: decoders of PEM pass over a block without an end.
func (f pemFile) whole() error {
	blocks, rest := 0, f.text
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks, rest = blocks+1, after
	}
	if blocks == 0 || blocks != bytes.Count(f.text, []byte("-----BEGIN ")) || len(bytes.TrimSpace(rest)) > 0 {
		return fmt.Errorf("%s is not whole: it must be PEM blocks, with nothing after the last one", f.path)
	}
	return nil
}
