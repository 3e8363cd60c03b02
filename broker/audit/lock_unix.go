//go:build unix

package audit

import (
	"os"
	"syscall"
)

// lock takes the file for this process. It is given back when the file is closed, however that
// comes about.
func lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
