package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
)

// log keeps the text of warnings.
type log struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (l *log) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(line)
}

func (l *log) warnings() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(strings.Lines(l.lines.String()))
}

func (l *log) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// What a writer leaves behind for a moment is not taken, and is said once.
func TestHalfWrittenFiles(t *testing.T) {
	root, other := newAuthority(t), newAuthority(t)
	chain, key := root.issue(t, brokerID).pem(t)
	_, otherKey := root.issue(t, brokerID).pem(t)
	foreign, foreignKey := other.issue(t, brokerID).pem(t)
	late, lateKey := root.issue(t, brokerID, lives(-time.Hour, -time.Minute)).pem(t)
	bundle := certPEM(root.cert.Raw, other.cert.Raw)
	good := map[string][]byte{"cert": chain, "key": key, "bundle": certPEM(root.cert.Raw), "federated": certPEM(other.cert.Raw)}

	for name, c := range map[string]struct {
		change map[string][]byte
		want   string // in the warning
	}{
		"certificate missing":         {map[string][]byte{"cert": nil}, "no such file"},
		"certificate empty":           {map[string][]byte{"cert": {}}, "not whole"},
		"certificate cut":             {map[string][]byte{"cert": chain[:len(chain)/2]}, "not whole"},
		"key empty":                   {map[string][]byte{"key": {}}, "not whole"},
		"key cut":                     {map[string][]byte{"key": key[:len(key)-5]}, "not whole"},
		"another's key":               {map[string][]byte{"key": otherKey}, "does not match private key"},
		"another kind of key file":    {map[string][]byte{"key": sec1(t, key)}, "PKCS #8"},
		"another CA's certificate":    {map[string][]byte{"cert": foreign, "key": foreignKey}, "do not fit together"},
		"expired":                     {map[string][]byte{"cert": late, "key": lateKey}, "expired"},
		"bundle missing":              {map[string][]byte{"bundle": nil}, "no such file"},
		"bundle empty":                {map[string][]byte{"bundle": {}}, "not whole"},
		"bundle cut in the second":    {map[string][]byte{"bundle": bundle[:len(bundle)-40]}, "not whole"},
		"bundle cut in the headline":  {map[string][]byte{"bundle": bundle[:len(certPEM(root.cert.Raw))+7]}, "not whole"},
		"bundle cut in the first":     {map[string][]byte{"bundle": slices.Concat(certPEM(other.cert.Raw)[:93], certPEM(root.cert.Raw))}, "not whole"},
		"bundle with a leaf":          {map[string][]byte{"bundle": append(certPEM(root.cert.Raw), chain...)}, "not an authority's"},
		"bundle is a key":             {map[string][]byte{"bundle": key}, "no certificate"},
		"bundle is not a certificate": {map[string][]byte{"bundle": certPEM([]byte("junk"))}, "bundle"},
		"bundle too large":            {map[string][]byte{"bundle": bytes.Repeat([]byte("\n"), identity.MaxFile+1)}, "larger than"},
		"federated bundle cut":        {map[string][]byte{"federated": good["federated"][:40]}, "not whole"},
		"federated bundle missing":    {map[string][]byte{"federated": nil}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, said := files{t, t.TempDir()}, &log{}
			for name, text := range good {
				dir.write(name, text)
			}
			source := follow(t, dir, said)
			wait(t, source)
			waitFor(t, source, theirs)
			peer, partner := root.issue(t, worker).certs(), other.issue(t, "spiffe://"+theirs+"/worker").certs()
			before := source.Generation()

			for name, text := range c.change {
				if text == nil {
					if err := os.Remove(dir.path(name)); err != nil {
						t.Fatal(err)
					}
				} else {
					dir.write(name, text)
				}
			}
			own := identity.Files{Cert: dir.path("cert"), Key: dir.path("key"), Bundle: dir.path("bundle")}
			_, federated := c.change["federated"]
			if err := own.Check(time.Now()); federated != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check: %v; want %q", err, c.want)
			}
			eventually(t, "it is said what is wrong", func() bool {
				return slices.ContainsFunc(said.warnings(), func(line string) bool { return strings.Contains(line, c.want) })
			})
			for _, certs := range [][]*x509.Certificate{peer, partner} {
				if _, err := source.Verify(certs, time.Now()); err != nil || source.Generation() != before {
					t.Errorf("what there was is gone: %v, generation %d", err, source.Generation())
				}
			}
			// Once it is whole, it is taken.
			for name, text := range good {
				dir.write(name, text)
			}
			dir.write("bundle", certPEM(newAuthority(t).cert.Raw, root.cert.Raw))
			eventually(t, "the whole set is taken", func() bool { return source.Generation() > before })
			if n := len(said.warnings()); n > 1+len(c.change)+1 {
				t.Errorf("%d warnings:\n%s", n, said.warnings())
			}
		})
	}
}

// follow follows the files cert, key, bundle and federated.
func follow(t *testing.T, dir files, said *log) *identity.Source {
	t.Helper()
	source := fromFiles(dir.path("cert"), dir.path("key"), dir.path("bundle"), said)
	if err := source.Federate(identity.Federation{TrustDomain: theirs, File: dir.path("federated")}); err != nil {
		t.Fatal(err)
	}
	runSource(t, source)
	return source
}

// sec1 writes the key as openssl ecparam does.
func sec1(t *testing.T, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// A set that stays wrong is said once, however often it is looked at.
func TestSaidOnce(t *testing.T) {
	root := newAuthority(t)
	chain, key := root.issue(t, brokerID).pem(t)
	dir, said := files{t, t.TempDir()}, &log{}
	for name, text := range map[string][]byte{"cert": chain, "key": key, "bundle": certPEM(newAuthority(t).cert.Raw), "federated": certPEM(root.cert.Raw)} {
		dir.write(name, text)
	}
	looks := &counter{}
	source := fromFiles(dir.path("cert"), dir.path("key"), dir.path("bundle"), said)
	source.Now = looks.now
	runSource(t, source)
	eventually(t, "it has looked often", func() bool { return looks.count() > 20 })
	if got := said.warnings(); len(got) != 1 || !strings.Contains(got[0], "do not fit together") {
		t.Errorf("%d warnings: %q", len(got), got)
	}
	// Another wrong content is said too.
	dir.write("bundle", certPEM(newAuthority(t).cert.Raw))
	eventually(t, "it is said again", func() bool { return len(said.warnings()) == 2 })
}

// counter is a clock that counts its readers.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return time.Now()
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// A set whose time has not come is looked at again, though its content stays the same.
func TestFilesBeforeTheirTime(t *testing.T) {
	root := newAuthority(t)
	chain, key := root.issue(t, brokerID, lives(30*time.Minute, time.Hour)).pem(t)
	dir := files{t, t.TempDir()}
	for name, text := range map[string][]byte{"cert": chain, "key": key, "bundle": certPEM(root.cert.Raw)} {
		dir.write(name, text)
	}
	clock := &clock{}
	source := fromFiles(dir.path("cert"), dir.path("key"), dir.path("bundle"), nil)
	source.Now = clock.now
	runSource(t, source)
	eventually(t, "it is refused", func() bool {
		_, err := source.GetX509SVID()
		return err != nil && strings.Contains(err.Error(), "not yet valid")
	})
	clock.set(time.Now().Add(45 * time.Minute))
	wait(t, source)
}

func TestMaxFile(t *testing.T) {
	root := newAuthority(t)
	chain, key := root.issue(t, brokerID).pem(t)
	dir := files{t, t.TempDir()}
	fill := bytes.Repeat([]byte("\n"), identity.MaxFile-len(chain))
	for name, text := range map[string][]byte{
		"cert": append(chain, fill...), "key": key, "bundle": certPEM(root.cert.Raw), "federated": certPEM(root.cert.Raw),
	} {
		dir.write(name, text)
	}
	wait(t, follow(t, dir, &log{})) // one byte more is among the half-written ones
}

func TestFilesNamesWhatIsWrong(t *testing.T) {
	root := newAuthority(t)
	dir := files{t, t.TempDir()}
	dir.writeSVID(root.issue(t, brokerID))
	dir.write("bundle", certPEM(root.cert.Raw))
	one, two := dir.path("svid.pem"), dir.path("bundle")
	for want, f := range map[string]identity.Files{
		"no certificate file was named": {Key: one, Bundle: two},
		"no key file was named":         {Cert: one, Bundle: two},
		"no bundle file was named":      {Cert: one, Key: one},
	} {
		source := identity.FromFiles(f, nil)
		source.Poll = poll
		stop := runSource(t, source)
		eventually(t, "it says "+want, func() bool {
			_, err := source.GetX509SVID()
			return err != nil && strings.Contains(err.Error(), want)
		})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := source.Wait(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), want) {
			t.Errorf("Wait says %v; want %q", err, want)
		}
		stop()
	}
}
