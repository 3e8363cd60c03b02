package verify_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

const cacheDenied = "gnt_00dddddddddddddddddddddddddd"

// cached starts a verifier that leaves a cache file behind, in which cacheDenied is denied, and returns
// the configuration for the next one.
func (b *broker) cached(t *testing.T, edit func(*verify.Config)) verify.Config {
	t.Helper()
	c := b.config()
	c.MaxStale = verify.MinMaxStale
	c.CacheFile = filepath.Join(t.TempDir(), "cache")
	if edit != nil {
		edit(&c)
	}
	v := must(verify.New(within(t, 20*time.Second), c))(t)
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: cacheDenied, Until: time.Now().Add(time.Hour)})
	settled(t, v, b)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	stat, err := os.Stat(c.CacheFile)
	if err != nil || stat.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", stat, err)
	}
	return c
}

// TestP2_StartFromTheCacheFile: while the broker is down a verifier starts on what the last one knew,
// refuses what that refused, accepts nothing once that is older than MaxStale, and hears of what has
// ended meanwhile when the broker is back.
func TestP2_StartFromTheCacheFile(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	c := b.cached(t, func(c *verify.Config) { c.MaxStale = 4 * time.Second })
	known := time.Now()
	token := b.token(func(c map[string]any) { c["exp"] = time.Now().Unix() + 600 })
	denied := b.token(func(c map[string]any) { c["jti"] = cacheDenied })
	meanwhile := b.token(func(c map[string]any) { c["jti"] = "gnt_00eeeeeeeeeeeeeeeeeeeeeeeeee" })
	b.cut()
	v := must(verify.New(within(t, 20*time.Second), c))(t)
	defer v.Close()
	if err := refused(t, v, b, token); err != nil {
		if time.Since(known) < 3*time.Second {
			t.Fatalf("a good token: %v", err)
		}
		t.Logf("this machine is too busy to see it: %v", err)
	}
	if err := refused(t, v, b, denied); !errors.Is(err, verify.ErrRevoked) && !errors.Is(err, verify.ErrStale) {
		t.Errorf("a denied one: %v", err)
	}
	eventually(t, "the view is too old", func() bool { return errors.Is(v.Ready(), verify.ErrStale) })
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrStale) {
		t.Errorf("a good token after MaxStale: %v", err)
	}
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00eeeeeeeeeeeeeeeeeeeeeeeeee"})
	b.mend()
	goesTo(t, v, b, token, nil)
	goesTo(t, v, b, meanwhile, verify.ErrRevoked)
	goesTo(t, v, b, denied, verify.ErrRevoked)
}

// TestP1_BrokerKnowsBetterThanTheCacheFile: a verifier that starts anew accepts nothing that has ended
// since the file was written, if the broker is there to say so.
func TestP1_BrokerKnowsBetterThanTheCacheFile(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	c := b.cached(t, func(c *verify.Config) { c.MaxStale = verify.MaxMaxStale })
	const ended = "gnt_00eeeeeeeeeeeeeeeeeeeeeeeeee"
	token := b.token(func(c map[string]any) { c["jti"] = ended })
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: ended, Until: time.Now().Add(time.Hour)})
	// A start that took the second for which the broker is asked first has not heard it on this machine.
	for range 5 {
		began := time.Now()
		v := must(verify.New(within(t, 20*time.Second), c))(t)
		took := time.Since(began)
		err := refused(t, v, b, token)
		v.Close()
		if errors.Is(err, verify.ErrRevoked) {
			return
		}
		if took < time.Second {
			t.Fatalf("a token that ended before the start: %v; want ErrRevoked", err)
		}
	}
	t.Error("the broker was never heard within a second")
}

// TestCacheFileThatIsNotUsed: the verifier starts as if there were none.
func TestCacheFileThatIsNotUsed(t *testing.T) {
	ahead := func(d time.Duration) func(*testing.T, *verify.Config) {
		return func(_ *testing.T, c *verify.Config) {
			c.Now = func() time.Time { return time.Now().Add(d) }
		}
	}
	change := func(f func([]byte) []byte) func(*testing.T, *verify.Config) {
		return func(t *testing.T, c *verify.Config) {
			data := must(os.ReadFile(c.CacheFile))(t)
			if err := os.WriteFile(c.CacheFile, f(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, edit := range map[string]func(*testing.T, *verify.Config){
		"older than MaxStale": ahead(verify.MinMaxStale + time.Second),
		"from the future":     ahead(-time.Minute),
		"a bit of it changed": change(func(d []byte) []byte { d[len(d)-20] ^= 1; return d }),
		"cut":                 change(func(d []byte) []byte { return d[:len(d)-1] }),
		"longer":              change(func(d []byte) []byte { return append(d, ' ') }),
		"empty":               change(func([]byte) []byte { return nil }),
		"another version":     change(func(d []byte) []byte { return bytes.Replace(d, []byte("cache 1"), []byte("cache 2"), 1) }),
		"its sum alone":       change(func(d []byte) []byte { return d[:bytes.IndexByte(d, '{')] }),
		"of another life of the machine": change(func(d []byte) []byte {
			i := bytes.Index(d, []byte(`"boot":"`)) + len(`"boot":"`)
			d[i] = map[bool]byte{true: '1', false: '0'}[d[i] == '0']
			start := bytes.IndexByte(d, '{')
			sum := sha256.Sum256(d[start:])
			return append(append(d[:start-2*len(sum)-1:start-2*len(sum)-1], hex.EncodeToString(sum[:])+"\n"...), d[start:]...)
		}),
		"too large":              change(func(d []byte) []byte { return bytes.Repeat(d, (16<<20)/len(d)+1) }),
		"of another audience":    func(_ *testing.T, c *verify.Config) { c.Audience = "billing" },
		"of another issuer":      func(_ *testing.T, c *verify.Config) { c.Issuer += "/" },
		"writable for its group": func(t *testing.T, c *verify.Config) { chmod(t, c.CacheFile, 0o620) },
		"writable for all":       func(t *testing.T, c *verify.Config) { chmod(t, c.CacheFile, 0o602) },
		"in a folder of all":     func(t *testing.T, c *verify.Config) { chmod(t, filepath.Dir(c.CacheFile), 0o777) },
		"a link": func(t *testing.T, c *verify.Config) {
			if err := os.Rename(c.CacheFile, c.CacheFile+".real"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(c.CacheFile+".real", c.CacheFile); err != nil {
				t.Fatal(err)
			}
		},
		"a pipe that nobody writes to": func(t *testing.T, c *verify.Config) {
			if err := errors.Join(os.Remove(c.CacheFile), syscall.Mkfifo(c.CacheFile, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"of times past counting": change(func(d []byte) []byte {
			start := bytes.IndexByte(d, '{')
			var c map[string]any
			if err := json.Unmarshal(d[start:], &c); err != nil {
				panic(err)
			}
			c["saved_at"] = time.Time{}
			body, err := json.Marshal(c)
			if err != nil {
				panic(err)
			}
			sum := sha256.Sum256(body)
			return append([]byte("errand verifier cache 1\n"+hex.EncodeToString(sum[:])+"\n"), body...)
		}),
		"a folder": func(t *testing.T, c *verify.Config) {
			if err := errors.Join(os.Remove(c.CacheFile), os.Mkdir(c.CacheFile, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			c := b.cached(t, nil)
			b.cut()
			edit(t, &c)
			var log bytes.Buffer
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			v, err := verify.New(within(t, 200*time.Millisecond), c)
			if err == nil {
				_ = v.Close()
				t.Fatal("it started from the file")
			}
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(log.String(), "the cache file is not used") {
				t.Errorf("got %v; the log says %s", err, &log)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestCacheFileAndAClockSetBack: the time since the machine was started says how old the file is, when
// the wall clock says less.
func TestCacheFileAndAClockSetBack(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	c := b.cached(t, nil)
	b.cut()
	saved := time.Now()
	time.Sleep(verify.MinMaxStale + 100*time.Millisecond)
	back := time.Since(saved) - 50*time.Millisecond
	c.Now = func() time.Time { return time.Now().Add(-back) }
	if v, err := verify.New(within(t, 200*time.Millisecond), c); err == nil {
		_ = v.Close()
		t.Fatal("an old file was taken for a young one")
	}
}

// TestCacheFileWithOnStaleAccept serves on an old view until tokens expire, and counts it, but not on
// keys that are older than 10 minutes.
func TestCacheFileWithOnStaleAccept(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	c := b.cached(t, func(c *verify.Config) { c.OnStale = verify.Accept })
	token := func(exp int64) string {
		return b.token(func(c map[string]any) { c["exp"] = time.Now().Unix() + exp })
	}
	long, short := token(800), token(60)
	denied := b.token(func(c map[string]any) { c["jti"], c["exp"] = cacheDenied, time.Now().Unix()+800 })
	b.cut()
	later := func(d time.Duration) func() time.Time {
		return func() time.Time { return time.Now().Add(d) }
	}
	old := 5 * time.Minute
	c.Now = later(old)
	v := must(verify.New(within(t, 20*time.Second), c))(t)
	for text, want := range map[string]error{long: nil, short: verify.ErrExpired, denied: verify.ErrRevoked} {
		if err := refused(t, v, b, text); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if s := v.Status(); s.AcceptedStale != 1 || s.FeedAge < old || v.Ready() == nil {
		t.Errorf("got %+v; ready: %v", s, v.Ready())
	}
	_ = v.Close()
	c.Now = later(10*time.Minute + time.Second)
	if v, err := verify.New(within(t, 200*time.Millisecond), c); err == nil {
		_ = v.Close()
		t.Error("keys of more than 10 minutes ago were used")
	}
}

// TestCacheFileIsNoReasonToFail: it is written while the verifier runs, and what cannot be written costs
// a line in the log.
func TestCacheFileIsNoReasonToFail(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	c := b.cached(t, nil)
	if err := os.Remove(c.CacheFile); err != nil {
		t.Fatal(err)
	}
	log := &logs{}
	c.Logger = slog.New(slog.NewTextHandler(log, nil))
	v := must(verify.New(within(t, 20*time.Second), c))(t)
	eventually(t, "the file is written", func() bool {
		_, err := os.Stat(c.CacheFile)
		return err == nil
	})
	denyMany(t, v, b, 10_001)
	eventually(t, "the log says that it is not written any more", func() bool { return log.has("at most 10000 are written down") })
	if err := errors.Join(os.Remove(c.CacheFile), v.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.CacheFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is there again: %v", err)
	}
}
