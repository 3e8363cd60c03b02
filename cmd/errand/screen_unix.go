//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// lines is how many lines of text a terminal shows.
func lines(terminal any) int {
	f, ok := terminal.(*os.File)
	if !ok {
		return usualLines
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Row == 0 {
		return usualLines
	}
	return int(size.Row)
}
