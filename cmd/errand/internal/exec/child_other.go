//go:build unix && !linux

package exec

import (
	"os"
	"syscall"
)

// attributes: there is nothing here that kills the command when this process is killed.
func attributes(shared bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: !shared} }

func awaitExit(p *os.Process) (wait func() (*os.ProcessState, error)) {
	state, err := p.Wait()
	return func() (*os.ProcessState, error) { return state, err }
}

func adopt() {}

// descendants are not looked for here: under a terminal only the command itself gets signals.
func descendants(int) []int { return nil }

func reapOthers(int) {}
