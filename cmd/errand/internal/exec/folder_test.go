//go:build unix

package exec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inDir is an environment with a runtime directory of its own.
func inDir(t testing.TB) (getenv func(string) string, base string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return func(name string) string { return map[string]string{"XDG_RUNTIME_DIR": dir}[name] }, filepath.Join(dir, "errand")
}

func mustHome(t testing.TB, getenv func(string) string) *home {
	t.Helper()
	h, err := newHome(getenv)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.remove() })
	return h
}

// pair is a generation whose files say which one it is.
func pair(n int) func(string) ([]file, error) {
	text := []byte(strconv.Itoa(n))
	return func(string) ([]file, error) { return []file{{tokenFile, text}, {certFile, text}}, nil }
}

// A reader that follows the link once finds a token and a certificate of the same moment, and one that
// does not finds them there at any time.
func TestReadersNeverSeeAMixedPair(t *testing.T) {
	getenv, _ := inDir(t)
	f := folder{home: mustHome(t, getenv).path, name: "orders"}
	if err := f.put(pair(0)); err != nil {
		t.Fatal(err)
	}
	const generations, readers = 300, 4
	var turns [readers]chan struct{}
	var reading sync.WaitGroup
	for i := range turns {
		turns[i] = make(chan struct{})
		reading.Go(func() {
			last := 0
			for range turns[i] {
				n, err := readPair(f.path())
				if err != nil || n < last {
					t.Errorf("after %d: %d, %v", last, n, err)
				}
				last = n
			}
		})
	}
	// As slow as a renewal is compared with a read: each reader begins again between two of them, and
	// reads while the next one comes.
	for n := 1; n <= generations; n++ {
		for _, turn := range turns {
			turn <- struct{}{}
		}
		if err := f.put(pair(n)); err != nil {
			t.Error(err)
		}
	}
	for _, turn := range turns {
		close(turn)
	}
	reading.Wait()
}

func readPair(link string) (int, error) {
	if _, err := os.ReadFile(filepath.Join(link, tokenFile)); err != nil {
		return 0, err
	}
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return 0, err
	}
	token, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if err != nil {
		return 0, err
	}
	cert, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return 0, err
	}
	if string(token) != string(cert) {
		return 0, fmt.Errorf("the token of %s and the certificate of %s", token, cert)
	}
	return strconv.Atoi(string(token))
}

// Nobody else can read anything, a generation that fails changes nothing, and old ones go.
func TestFolderIsPrivateAndBounded(t *testing.T) {
	getenv, base := inDir(t)
	h := mustHome(t, getenv)
	f := folder{home: h.path, name: "orders"}
	for n := range 10 {
		if err := f.put(pair(n)); err != nil {
			t.Fatal(err)
		}
	}
	broken := errors.New("broken")
	if err := f.put(func(string) ([]file, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if err := f.put(func(string) ([]file, error) { return []file{{"no/such/folder", nil}}, nil }); err == nil {
		t.Error("a file nowhere")
	}
	if n, err := readPair(f.path()); n != 9 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	entries, err := os.ReadDir(h.path)
	if err != nil || len(entries) != 2+keptGenerations+1 {
		t.Errorf("%v, %v", entries, err)
	}
	err = filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		info, _ := d.Info()
		if d.Type()&fs.ModeSymlink == 0 && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := h.remove(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(base); len(left) != 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// kill makes a home as a killed process leaves it: the kernel has let go of its lock.
func kill(t *testing.T, h *home) {
	t.Helper()
	if err := h.lock.Close(); err != nil {
		t.Fatal(err)
	}
}

// A sweep takes the folders of those who are gone, and nothing else.
func TestSweepTakesOnlyWhatIsLeft(t *testing.T) {
	getenv, base := inDir(t)
	alive, gone := mustHome(t, getenv), mustHome(t, getenv)
	f := folder{home: gone.path, name: "orders"}
	if err := f.put(pair(1)); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	old := time.Now().Add(-2 * abandonedAfter)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(base, "somebodys"), 0o700),
		os.WriteFile(filepath.Join(base, "somebodys", lockName), nil, 0o600),
		os.MkdirAll(filepath.Join(base, "run-WITHOUTLOCK"), 0o700),
		os.MkdirAll(filepath.Join(base, "run-LOCKISALINK"), 0o700),
		os.MkdirAll(outside, 0o700),
		os.WriteFile(filepath.Join(outside, lockName), nil, 0o600),
		os.Symlink(filepath.Join(outside, lockName), filepath.Join(base, "run-LOCKISALINK", lockName)),
		os.Symlink(outside, filepath.Join(base, "run-LINK")),
		os.MkdirAll(filepath.Join(base, "new-YOUNG"), 0o700),
		os.WriteFile(filepath.Join(base, "new-YOUNG", lockName), nil, 0o600),
		os.MkdirAll(filepath.Join(base, "new-OLD"), 0o700),
		os.WriteFile(filepath.Join(base, "new-OLD", lockName), nil, 0o600),
		os.Chtimes(filepath.Join(base, "new-OLD"), old, old),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	kill(t, gone)
	next := mustHome(t, getenv)
	var left []string
	entries, err := os.ReadDir(base)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	want := map[string]bool{
		filepath.Base(alive.path): true, filepath.Base(next.path): true, "somebodys": true,
		"run-WITHOUTLOCK": true, "run-LOCKISALINK": true, "run-LINK": true, "new-YOUNG": true,
	}
	if err != nil || len(left) != len(want) {
		t.Errorf("left are %v, %v", left, err)
	}
	for _, name := range left {
		if !want[name] {
			t.Errorf("%s is there still", name)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, lockName)); err != nil {
		t.Error(err)
	}
}

// Those who start while others sweep keep their folders.
func TestSweepSparesThoseWhoAreStarting(t *testing.T) {
	getenv, _ := inDir(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				h, err := newHome(getenv)
				if err != nil {
					t.Error(err)
					return
				}
				f := folder{home: h.path, name: "orders"}
				if err := errors.Join(f.put(pair(1)), h.remove()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// A folder that others can enter, or that is not ours, is not used.
func TestBaseMustBePrivate(t *testing.T) {
	getenv, base := inDir(t)
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := newHome(getenv); err == nil || !strings.Contains(err.Error(), "not a folder of this user alone") {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(os.Remove(base), os.Symlink(t.TempDir(), base)); err != nil {
		t.Fatal(err)
	}
	if _, err := newHome(getenv); err == nil {
		t.Error("a link was followed")
	}
}

// Whatever an audience is called, its folder is one folder in the home, and its own.
func TestFolderNames(t *testing.T) {
	audience := rapid.StringMatching(`[!#-\[\]-~]{1,60}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := audience.Draw(t, "a"), audience.Draw(t, "b")
		name := folderOf(a)
		if name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
			t.Fatalf("%q becomes %q", a, name)
		}
		if a != b && name == folderOf(b) {
			t.Fatalf("%q and %q are both %q", a, b, name)
		}
	})
	for in, want := range map[string]string{"orders": "orders", "..": "%2E.", ".lock": "%2Elock", "a/b": "a%2Fb"} {
		if got := folderOf(in); got != want {
			t.Errorf("%q becomes %q", in, got)
		}
	}
}
