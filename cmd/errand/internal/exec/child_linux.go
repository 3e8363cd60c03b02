package exec

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes make the kernel kill the command when this process dies without a chance to.
func attributes(shared bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: !shared}
}

// awaitExit returns when the process has exited, and keeps its ID and that of its group taken until
// wait is called.
func awaitExit(p *os.Process) (wait func() (*os.ProcessState, error)) {
	for unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	return p.Wait
}

// adopt makes this process the parent of what the command leaves behind, so that it can be found.
func adopt() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// process is a line of /proc.
type process struct {
	pid, parent int
	zombie      bool
}

// processes are all that can be seen.
func processes() []process {
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	var list []process
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		// The name of the program, in parentheses, may hold anything.
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if err != nil || len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(string(fields[1]))
		if err == nil {
			list = append(list, process{pid, parent, string(fields[0]) == "Z"})
		}
	}
	return list
}

// descendants are the processes below this one, but for the command itself.
func descendants(command int) []int {
	list := processes()
	family := map[int]bool{os.Getpid(): true}
	for grown := true; grown; {
		grown = false
		for _, p := range list {
			if family[p.parent] && !family[p.pid] {
				family[p.pid], grown = true, true
			}
		}
	}
	var out []int
	for _, p := range list {
		if family[p.pid] && !p.zombie && p.pid != command && p.pid != os.Getpid() {
			out = append(out, p.pid)
		}
	}
	return out
}

// reapOthers lets go of children that are not the command: they came to this process because their
// parents have died, where it has adopted them or is the first of a container.
func reapOthers(command int) {
	for _, p := range processes() {
		if p.parent == os.Getpid() && p.zombie && p.pid != command {
			_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
		}
	}
}
