package sdk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// pollFiles is how often files are looked at.
	pollFiles = time.Second
	// MaxFileBytes is the largest identity file that is read.
	MaxFileBytes = 1 << 20
)

// FromDir uses the files svid.pem, svid_key.pem and svid_bundle.pem of a directory, as
// spiffe-helper writes them. See FromFiles.
func FromDir(dir string) IdentitySource {
	return FromFiles(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem"), filepath.Join(dir, "svid_bundle.pem"))
}

// FromFiles uses three PEM files: the SVID and its intermediates, its key in PKCS #8, and the
// authorities of its own trust domain. They are followed by content, every second. A set that is
// half-written or does not fit together is passed over, and what there was stays in use.
func FromFiles(cert, key, bundle string) IdentitySource { return files{cert, key, bundle} }

type files struct{ cert, key, bundle string }

func (f files) String() string {
	return fmt.Sprintf("the files %s, %s and %s", f.cert, f.key, f.bundle)
}

func (f files) Open(ctx context.Context) (x509svid.Source, x509bundle.Source, func() error, error) {
	w := &watchedFiles{files: f, end: make(chan struct{}), ended: make(chan struct{})}
	err := w.look()
	for err != nil {
		if sleep(ctx, pollFiles) != nil {
			return nil, nil, nil, err
		}
		err = w.look()
	}
	go w.follow()
	release := func() error {
		close(w.end)
		<-w.ended
		return nil
	}
	return w, w, release, nil
}

// watchedFiles is the last good set of the files.
type watchedFiles struct {
	files
	last       atomic.Pointer[fileSet]
	end, ended chan struct{}
}

type fileSet struct {
	digest [sha256.Size]byte
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

func (w *watchedFiles) GetX509SVID() (*x509svid.SVID, error) { return w.last.Load().svid, nil }

func (w *watchedFiles) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return w.last.Load().bundle.GetX509BundleForTrustDomain(td)
}

func (w *watchedFiles) follow() {
	defer close(w.ended)
	tick := time.NewTicker(pollFiles)
	defer tick.Stop()
	for {
		select {
		case <-w.end:
			return
		case <-tick.C:
			// What cannot be used now is looked at again in a second.
			_ = w.look()
		}
	}
}

// look takes what is in the files if it is new and good.
func (w *watchedFiles) look() error {
	var texts [3][]byte
	hash := sha256.New()
	for i, path := range []string{w.cert, w.key, w.bundle} {
		text, err := readSmall(path)
		if err != nil {
			return err
		}
		texts[i] = text
		fmt.Fprintf(hash, "%d\n%s", len(text), text)
	}
	set := &fileSet{}
	hash.Sum(set.digest[:0])
	if last := w.last.Load(); last != nil && last.digest == set.digest {
		return nil
	}
	if err := w.parse(set, texts); err != nil {
		return err
	}
	w.last.Store(set)
	return nil
}

// parse fills in the set, or says what does not fit.
func (f files) parse(set *fileSet, texts [3][]byte) (err error) {
	for i, path := range []string{f.cert, f.key, f.bundle} {
		if !wholePEM(texts[i]) {
			return fmt.Errorf("%s is not whole: it must be PEM blocks, with nothing after the last one", path)
		}
	}
	if set.svid, err = x509svid.Parse(texts[0], texts[1]); err != nil {
		return fmt.Errorf("%s with the key %s: %w", f.cert, f.key, err)
	}
	if set.bundle, err = x509bundle.Parse(set.svid.ID.TrustDomain(), texts[2]); err != nil {
		return fmt.Errorf("%s: %w", f.bundle, err)
	}
	if _, _, err := x509svid.Verify(set.svid.Certificates, set.bundle); err != nil {
		return fmt.Errorf("%s and %s do not fit together: %w", f.cert, f.bundle, err)
	}
	return nil
}

// wholePEM refuses a file that was cut: decoders of PEM pass over a block without an end.
func wholePEM(text []byte) bool {
	blocks, rest := 0, text
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks, rest = blocks+1, after
	}
	return blocks > 0 && blocks == bytes.Count(text, []byte("-----BEGIN ")) && len(bytes.TrimSpace(rest)) == 0
}

func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxFileBytes {
		return nil, fmt.Errorf("%s has more than %d bytes", path, MaxFileBytes)
	}
	return text, nil
}
