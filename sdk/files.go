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

// Names of the files of FromDir.
const (
	svidFile       = "svid.pem" // of spiffe-helper
	keyFile        = "svid_key.pem"
	bundleFile     = "svid_bundle.pem"
	credentialFile = "credentialbundle.pem" // of a Kubernetes Pod certificate
	trustFile      = "trustbundle.pem"
)

// FromDir uses the files of a directory, in one of two layouts. They are followed as those of
// FromFiles.
//
// A projected volume of Kubernetes has credentialbundle.pem, the credentialBundlePath of a
// podCertificate, with the key and the chain in one file; and trustbundle.pem, the path of a
// clusterTrustBundle. For other paths there, use FromFiles with the same file as cert and key.
//
// A directory of spiffe-helper has svid.pem, svid_key.pem and svid_bundle.pem.
func FromDir(dir string) IdentitySource { return directory(dir) }

type directory string

func (d directory) String() string { return "the directory " + string(d) }

func (d directory) Open(ctx context.Context) (x509svid.Source, x509bundle.Source, func() error, error) {
	return follow(ctx, d.files)
}

// files are those of the layout that is there now.
func (d directory) files() (files, error) {
	in := func(name string) string { return filepath.Join(string(d), name) }
	_, err := os.Stat(in(credentialFile))
	if err == nil {
		return files{in(credentialFile), in(credentialFile), in(trustFile)}, nil
	}
	if _, other := os.Stat(in(svidFile)); other == nil {
		return files{in(svidFile), in(keyFile), in(bundleFile)}, nil
	}
	return files{}, fmt.Errorf("it has neither %s with %s, as of a Pod certificate, nor %s, %s and %s, as of spiffe-helper (%w)",
		credentialFile, trustFile, svidFile, keyFile, bundleFile, err)
}

// FromFiles uses three PEM files: the SVID and its intermediates, its key in PKCS #8, and the
// authorities of its own trust domain. cert and key may be the same file, which is then read at once.
// They are followed by content, every second. A set that is half-written or does not fit together is
// passed over, and what there was stays in use.
func FromFiles(cert, key, bundle string) IdentitySource { return files{cert, key, bundle} }

type files struct{ cert, key, bundle string }

func (f files) String() string {
	return fmt.Sprintf("the files %s, %s and %s", f.cert, f.key, f.bundle)
}

func (f files) Open(ctx context.Context) (x509svid.Source, x509bundle.Source, func() error, error) {
	return follow(ctx, func() (files, error) { return f, nil })
}

// follow waits for a good set of files, and goes on looking for the next.
func follow(ctx context.Context, which func() (files, error)) (x509svid.Source, x509bundle.Source, func() error, error) {
	w := &watchedFiles{which: which, end: make(chan struct{}), ended: make(chan struct{})}
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
	which      func() (files, error)
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
	f, err := w.which()
	if err != nil {
		return err
	}
	var texts [3][]byte
	hash := sha256.New()
	for i, path := range []string{f.cert, f.key, f.bundle} {
		if i == 1 && f.key == f.cert {
			texts[i] = texts[0] // one file is one read, or they would not fit together
		} else if texts[i], err = readSmall(path); err != nil {
			return err
		}
		fmt.Fprintf(hash, "%d\n%s", len(texts[i]), texts[i])
	}
	set := &fileSet{}
	hash.Sum(set.digest[:0])
	if last := w.last.Load(); last != nil && last.digest == set.digest {
		return nil
	}
	if err := f.parse(set, texts); err != nil {
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
