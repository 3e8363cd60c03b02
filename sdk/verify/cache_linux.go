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
