package verify

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// bootClock names this life of the machine, and says how long it has lasted, suspended or not: a clock
// that nobody sets.
func bootClock() (boot string, up time.Duration, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0, err
	}
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return "", 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	up, err = time.ParseDuration(first + "s")
	if err != nil {
		return "", 0, fmt.Errorf("/proc/uptime: %w", err)
	}
	return strings.TrimSpace(string(id)), up, nil
}

func ownedByUs(stat fs.FileInfo) bool {
	s, ok := stat.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}

// safeFolder wants a folder in which nobody else can put another file in the place of ours: one of this
// user or of root, and one that others write to only if it is sticky, as /tmp.
func safeFolder(stat fs.FileInfo) bool {
	s, ok := stat.Sys().(*syscall.Stat_t)
	return ok && (s.Uid == 0 || int(s.Uid) == os.Geteuid()) && (stat.Mode().Perm()&0o022 == 0 || stat.Mode()&fs.ModeSticky != 0)
}

func openWithoutWait(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}
