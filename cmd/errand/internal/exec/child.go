//go:build unix

package exec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is the controlling terminal of this process, nil when there is none.
type terminal struct{ *os.File }

func openTerminal() *terminal {
	// Opening it fails where there is none; a stream may be a terminal without being this one.
	file, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return &terminal{file}
}

func (t *terminal) close() {
	if t != nil {
		_ = t.Close()
	}
}

// foreground reports whether what is typed there, as Ctrl-C, reaches the process group of this process.
func (t *terminal) foreground() bool {
	if t == nil {
		return false
	}
	group, err := unix.IoctlGetInt(int(t.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// child is the command. Under a terminal it shares the process group of this process, so that the shell's
// job control, pipelines and Ctrl-C work as if the command had been started without errand; elsewhere it
// leads a group of its own, so that a signal reaches all that it has started and nobody else.
type child struct {
	process *os.Process
	shared  bool
	exited  chan struct{} // it has exited; its ID is kept for it until reap
	done    chan struct{} // reaped
	reap    chan struct{}
	state   *os.ProcessState
	err     error
}

// startChild runs a program. Its kernel-given parent is one thread, whose death would kill it, so one
// goroutine keeps a thread to itself from the start to the end.
func startChild(path string, argv, env []string, files []*os.File, shared bool) (*child, error) {
	c := &child{shared: shared, exited: make(chan struct{}), done: make(chan struct{}), reap: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(c.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		c.process, err = os.StartProcess(path, argv, &os.ProcAttr{Env: env, Files: files, Sys: attributes(shared)})
		started <- err
		if err != nil {
			return
		}
		wait := awaitExit(c.process)
		close(c.exited)
		<-c.reap
		c.state, c.err = wait()
	}()
	return c, <-started
}

// finish lets go of the ID of a command that has exited, and returns its exit code as a shell tells it.
func (c *child) finish() (code int, reason string) {
	close(c.reap)
	<-c.done
	if c.err != nil {
		return CodeFailed, "lost: " + c.err.Error()
	}
	if status, ok := c.state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), "signal: " + status.Signal().String()
	}
	return c.state.ExitCode(), c.state.String()
}

// signal sends a signal to the command alone.
func (c *child) signal(s os.Signal) { _ = c.process.Signal(s) }

// signalAll sends it to the command and what it has started, as far as that can be found.
func (c *child) signalAll(s syscall.Signal) {
	if !c.shared {
		_ = syscall.Kill(-c.process.Pid, s)
		return
	}
	c.signal(s)
	for range killRounds {
		list := descendants(c.process.Pid)
		for _, pid := range list {
			_ = syscall.Kill(pid, s)
		}
		if s != syscall.SIGKILL || len(list) == 0 {
			return
		}
	}
}

// killRounds bounds how often it is looked for processes that others have started before they died.
const killRounds = 5

// find looks for a program as a shell does. Where there is none, the code says why.
func find(name string) (path string, code int, err error) {
	path, err = exec.LookPath(name)
	if err == nil {
		return path, 0, nil
	}
	return "", startCode(err), fmt.Errorf("%s: %w", name, reason(err))
}

// startCode is the exit code for a program that cannot be started.
func startCode(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return CodeNotFound
	}
	return CodeNotExecutable
}

// reason is the error below those that repeat the name, with what to do where that is not plain.
func reason(err error) error {
	switch {
	case errors.Is(err, exec.ErrDot):
		return errors.New("it is in the current folder, which PATH names; write ./ before it if you mean it")
	case errors.Is(err, syscall.ENOEXEC):
		return errors.New("not a program of this machine; a script needs a first line like #!/bin/sh")
	}
	var path *fs.PathError
	var look *exec.Error
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &look):
		return look.Err
	}
	return err
}
