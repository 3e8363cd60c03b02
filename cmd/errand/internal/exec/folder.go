//go:build unix

package exec

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	lockName = ".lock" // no folder of an audience begins with a dot
	runName  = "run-"  // and something random: the folder of one live Run, or of one that was killed
	newName  = "new-"  // one that is being made

	// keptGenerations is how many old generations stay, for those who are reading them.
	keptGenerations = 2
	// abandonedAfter is the age from which a folder that was never finished is swept.
	abandonedAfter = time.Hour
)

// home is the private folder of one Run. It has a folder for each audience, and a file that is locked
// as long as this process lives.
type home struct {
	path string
	lock *os.File
}

// newHome makes one, in memory where the system allows, and removes what killed ones have left there.
func newHome(getenv func(string) string) (*home, error) {
	base, err := baseDir(getenv)
	if err != nil {
		return nil, err
	}
	sweep(base)
	making := filepath.Join(base, newName+rand.Text())
	if err := os.Mkdir(making, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(making, lockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errors.Join(err, os.Remove(making))
	}
	h := &home{filepath.Join(base, runName+rand.Text()), lock}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		// Only now may a sweep look at it: the lock says that somebody is at home.
		err = os.Rename(making, h.path)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close(), os.RemoveAll(making))
	}
	return h, nil
}

// remove takes everything away. Nobody may put anything into it any more.
func (h *home) remove() error { return errors.Join(clearOut(h.path), h.lock.Close()) }

// clearOut removes the lock last, so that a sweep can finish what was interrupted.
func clearOut(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		if e.Name() != lockName {
			failed = append(failed, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// baseDir is where the folders of one user are. The first two are in memory, as a rule.
func baseDir(getenv func(string) string) (string, error) {
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && private(dir) == nil {
		return makePrivate(filepath.Join(dir, "errand"))
	}
	name := fmt.Sprintf("errand-exec-%d", os.Getuid())
	if base, err := makePrivate(filepath.Join("/dev/shm", name)); err == nil {
		return base, nil
	}
	return makePrivate(filepath.Join(os.TempDir(), name))
}

func makePrivate(dir string) (string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("no folder for the tokens: %w; set XDG_RUNTIME_DIR or TMPDIR to one of yours, or use --no-files", err)
	}
	if err := private(dir); err != nil {
		return "", fmt.Errorf("no folder for the tokens: %w; remove it, or set XDG_RUNTIME_DIR to a folder of yours", err)
	}
	return dir, nil
}

// private wants a real folder that is this user's, and that nobody else can enter.
func private(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() || !mine(info) || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is not a folder of this user alone (%s)", dir, info.Mode())
	}
	return nil
}

func mine(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// sweep removes the folders of processes that are gone. What is not surely one of them stays, and so
// does what cannot be removed.
func sweep(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.IsDir() || !mine(info) {
			continue
		}
		abandoned := strings.HasPrefix(e.Name(), newName) && time.Since(info.ModTime()) > abandonedAfter
		if strings.HasPrefix(e.Name(), runName) || abandoned {
			sweepOne(filepath.Join(base, e.Name()))
		}
	}
}

func sweepOne(dir string) {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer lock.Close()
	info, err := lock.Stat()
	if err != nil || !info.Mode().IsRegular() || !mine(info) {
		return
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		_ = clearOut(dir)
	}
}

// folder is what one audience has in a home: a link to the generation of now. It is replaced as one, so
// that what a reader finds behind the link belongs together. A reader of several files follows the link
// once, and reads them there.
type folder struct {
	home string
	name string
	last int // number of the generation
}

// path is the link, which never changes its name.
func (f *folder) path() string { return filepath.Join(f.home, f.name) }

// file is a file of a generation.
type file struct {
	name string
	text []byte
}

// put makes a new generation of what files returns for the folder that it will be in.
func (f *folder) put(files func(dir string) ([]file, error)) error {
	number := f.last + 1
	generation := "." + f.name + "." + strconv.Itoa(number)
	dir := filepath.Join(f.home, generation)
	list, err := files(dir)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, file := range list {
		if err := writeNew(filepath.Join(dir, file.name), file.text); err != nil {
			return errors.Join(err, os.RemoveAll(dir))
		}
	}
	link := dir + ".link"
	err = os.Symlink(generation, link)
	if err == nil {
		err = os.Rename(link, f.path())
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(link), os.RemoveAll(dir))
	}
	f.last = number
	return os.RemoveAll(filepath.Join(f.home, "."+f.name+"."+strconv.Itoa(number-keptGenerations-1)))
}

// writeNew makes a file that only this user can read.
func writeNew(path string, text []byte) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return errors.Join(err, out.Close())
}
