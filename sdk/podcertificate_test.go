package sdk_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
)

// volume is a projected volume of Kubernetes: each version is a folder of its own, and the symbolic
// link ..data is moved to the next one in a single step.
type volume struct {
	dir     string
	version int
}

func newVolume(tb testing.TB, names ...string) *volume {
	tb.Helper()
	v := &volume{dir: tb.TempDir()}
	for _, name := range names {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(v.dir, name)); err != nil {
			tb.Fatal(err)
		}
	}
	return v
}

// project makes the next version, and removes the one before.
func (v *volume) project(tb testing.TB, files map[string][]byte) {
	tb.Helper()
	v.version++
	name := "..v" + string(rune('a'+v.version))
	if err := os.Mkdir(filepath.Join(v.dir, name), 0o700); err != nil {
		tb.Fatal(err)
	}
	for file, text := range files {
		write(tb, filepath.Join(v.dir, name), file, text)
	}
	before, _ := os.Readlink(filepath.Join(v.dir, "..data"))
	err := os.Symlink(name, filepath.Join(v.dir, "..tmp"))
	if err := errors.Join(err, os.Rename(filepath.Join(v.dir, "..tmp"), filepath.Join(v.dir, "..data"))); err != nil {
		tb.Fatal(err)
	}
	if before != "" {
		os.RemoveAll(filepath.Join(v.dir, before))
	}
}

// credential is the key and then the chain, as the kubelet writes them.
func credential(tb testing.TB, svid *x509svid.SVID) []byte {
	tb.Helper()
	cert, key, err := svid.Marshal()
	if err != nil {
		tb.Fatal(err)
	}
	return append(key, cert...)
}

// A Pod certificate is one file with key and chain, beside a file of authorities.
func TestPodCertificateIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVolume(t, "credentialbundle.pem", "trustbundle.pem")
		ca := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		next := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		roots, nextRoots := must(ca.Bundle().Marshal())(t), must(next.Bundle().Marshal())(t)
		first, second := must(ca.Issue(reportID, 0))(t), must(ca.Issue(reportID, 0))(t)
		v.project(t, map[string][]byte{"credentialbundle.pem": credential(t, first), "trustbundle.pem": roots})
		svids, bundles, release, err := sdk.FromDir(v.dir).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		is := func(when string, want *x509svid.SVID, authorities int) {
			t.Helper()
			time.Sleep(1100 * time.Millisecond)
			if got := must(svids.GetX509SVID())(t); !bytes.Equal(got.Certificates[0].Raw, want.Certificates[0].Raw) {
				t.Errorf("%s: another SVID", when)
			}
			if got := must(bundles.GetX509BundleForTrustDomain(reportID.TrustDomain()))(t); len(got.X509Authorities()) != authorities {
				t.Errorf("%s: %d authorities", when, len(got.X509Authorities()))
			}
		}
		is("at first", first, 1)
		whole := credential(t, second)
		for when, text := range map[string][]byte{
			"no file": nil, "half": whole[:len(whole)/2], "no key": whole[bytes.Index(whole, []byte("-----BEGIN CERT")):],
			"no chain": whole[:bytes.Index(whole, []byte("-----BEGIN CERT"))],
			"a key of another": append(bytes.Clone(whole[:bytes.Index(whole, []byte("-----BEGIN CERT"))]),
				credential(t, first)[bytes.Index(credential(t, first), []byte("-----BEGIN CERT")):]...),
		} {
			files := map[string][]byte{"trustbundle.pem": roots, "credentialbundle.pem": text}
			if text == nil {
				delete(files, "credentialbundle.pem")
			}
			v.project(t, files)
			is(when, first, 1)
		}
		v.project(t, map[string][]byte{"credentialbundle.pem": whole, "trustbundle.pem": append(bytes.Clone(nextRoots), roots...)})
		is("the next, with the next authority", second, 2)
		third := must(next.Issue(reportID, 0))(t)
		v.project(t, map[string][]byte{"credentialbundle.pem": credential(t, third), "trustbundle.pem": nextRoots})
		is("the old authority is gone", third, 1)
	})
}

// Other names in the volume are those of FromFiles, where one file is both certificate and key.
func TestPodCertificateWithOtherNames(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	write(t, dir, "x509.pem", credential(t, w.who.svid))
	write(t, dir, "roots.pem", must(w.ca.Bundle().Marshal())(t))
	at := filepath.Join(dir, "x509.pem")
	client := must(sdk.New(t.Context(), append(w.options(), sdk.WithIdentity(sdk.FromFiles(at, at, filepath.Join(dir, "roots.pem"))))...))(t)
	defer closeClient(client)
	must(begin(t, client, spec).Token(t.Context(), ordersRead))(t)
}

// A volume without its trust bundle says which file is missing.
func TestPodCertificateWithoutATrustBundle(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	write(t, dir, "credentialbundle.pem", credential(t, w.who.svid))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, _, err := sdk.FromDir(dir).Open(ctx); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "trustbundle.pem") {
		t.Errorf("got %v", err)
	}
	startError(t, []sdk.Option{sdk.WithLogger(slog.New(slog.DiscardHandler)), sdk.WithBroker(w.broker.String()), sdk.WithBrokerID(brokerID),
		sdk.WithEnv(map[string]string{"ERRAND_IDENTITY_DIR": dir})},
		"no SPIFFE identity", "SPIFFE_ENDPOINT_SOCKET: not set", dir, "trustbundle.pem")
}
