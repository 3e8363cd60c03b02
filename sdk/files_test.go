package sdk_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
)

// encode returns an SVID and its bundle as the three files have them.
func encode(tb testing.TB, svid *x509svid.SVID, bundle *x509bundle.Bundle) (cert, key, roots []byte) {
	tb.Helper()
	cert, key, err := svid.Marshal()
	if err != nil {
		tb.Fatal(err)
	}
	return cert, key, must(bundle.Marshal())(tb)
}

func writeSVID(tb testing.TB, dir string, svid *x509svid.SVID, bundle *x509bundle.Bundle) {
	tb.Helper()
	cert, key, roots := encode(tb, svid, bundle)
	for name, text := range map[string][]byte{"svid.pem": cert, "svid_key.pem": key, "svid_bundle.pem": roots} {
		write(tb, dir, name, text)
	}
}

func write(tb testing.TB, dir, name string, text []byte) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		tb.Fatal(err)
	}
}

func TestFilesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		first, second := must(ca.Issue(reportID, 0))(t), must(ca.Issue(reportID, 0))(t)
		writeSVID(t, dir, first, ca.Bundle())
		svids, bundles, release, err := sdk.FromDir(dir).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		is := func(when string, want *x509svid.SVID) {
			t.Helper()
			time.Sleep(1100 * time.Millisecond)
			if got := must(svids.GetX509SVID())(t); !bytes.Equal(got.Certificates[0].Raw, want.Certificates[0].Raw) {
				t.Errorf("%s: another SVID", when)
			}
		}
		is("at first", first)
		cert, key, roots := encode(t, second, ca.Bundle())
		write(t, dir, "svid.pem", cert)
		is("the certificate without its key", first)
		write(t, dir, "svid_key.pem", key[:len(key)/2])
		is("half a key", first)
		write(t, dir, "svid_key.pem", key)
		is("both", second)
		foreign := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		_, _, wrong := encode(t, second, foreign.Bundle())
		for name, text := range map[string][]byte{
			"empty": nil, "cut": append(bytes.Clone(roots), roots[:len(roots)/2]...), "of another CA": wrong, "too large": make([]byte, sdk.MaxFileBytes+1),
		} {
			write(t, dir, "svid_bundle.pem", text)
			is("a bundle that is "+name, second)
		}
		if err := os.Remove(filepath.Join(dir, "svid_bundle.pem")); err != nil {
			t.Fatal(err)
		}
		is("no bundle", second)
		write(t, dir, "svid_bundle.pem", append(bytes.Clone(roots), wrong...))
		is("two authorities", second)
		// Cut after the first authority: the other must not be dropped for that.
		write(t, dir, "svid_bundle.pem", append(bytes.Clone(roots), wrong[:len(wrong)/2]...))
		is("two authorities, cut", second)
		if got := must(bundles.GetX509BundleForTrustDomain(reportID.TrustDomain()))(t); len(got.X509Authorities()) != 2 {
			t.Errorf("%d authorities", len(got.X509Authorities()))
		}
		if _, err := bundles.GetX509BundleForTrustDomain(foreignDomain); err == nil {
			t.Error("there is a bundle of another trust domain")
		}
	})
}

// Open waits for files that are not there yet, and says in the end what was wrong with them.
func TestFilesThatComeLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		go func() {
			time.Sleep(5 * time.Second)
			writeSVID(t, dir, must(ca.Issue(reportID, 0))(t), ca.Bundle())
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, _, _, err := sdk.FromDir(dir).Open(ctx); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "credentialbundle.pem") || !strings.Contains(err.Error(), "svid_bundle.pem") {
			t.Errorf("got %v", err)
		}
		_, _, release, err := sdk.FromDir(dir).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := release(); err != nil {
			t.Error(err)
		}
	})
}

// The key may be in the order and form that tools write it in; an EC key in SEC 1 is none of them.
func TestFilesWithAnotherKeyFormat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		svid := must(ca.Issue(reportID, 0))(t)
		writeSVID(t, dir, svid, ca.Bundle())
		_, key, _ := encode(t, svid, ca.Bundle())
		block, _ := pem.Decode(key)
		block.Type = "EC PRIVATE KEY"
		write(t, dir, "svid_key.pem", pem.EncodeToMemory(block))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, _, err := sdk.FromDir(dir).Open(ctx); err == nil {
			t.Error("it was taken")
		}
	})
}
