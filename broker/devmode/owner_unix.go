//go:build unix

package devmode

import (
	"io/fs"
	"os"
	"syscall"
)

// owned reports whether the file is this user's.
func owned(found fs.FileInfo) bool {
	stat, ok := found.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
