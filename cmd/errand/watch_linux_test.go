package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk/wire"
	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal of five lines: what a program writes to one end is read at the other.
func terminal(t *testing.T) (inside, outside *os.File) {
	t.Helper()
	outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("no pseudo-terminals: %v; mount devpts, since what a terminal shows must be tried on one", err)
	}
	t.Cleanup(func() { outside.Close() })
	fd := int(outside.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if inside, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inside.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 5, Col: 40}); err != nil {
		t.Fatal(err)
	}
	return inside, outside
}

// TestWatchOnATerminal draws a table that fits, with the columns that one names.
func TestWatchOnATerminal(t *testing.T) {
	inside, outside := terminal(t)
	seen := make(chan struct{})
	asked := 0
	fakeOperator(t, func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked > 1 {
			w.Header().Set("Content-Type", wire.TypeProblem)
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"type":"https://a/problems/role-required","title":"T","status":403}`)
			return
		}
		w.Header().Set("Content-Type", wire.TypeEvents)
		for _, id := range []string{"gnt_a", "gnt_b", "gnt_c"} {
			_, _ = io.WriteString(w, "event: added\ndata: {\"id\":\""+id+"\",\"workload\":\"\\u001b[2J\"}\n\n")
		}
		_, _ = io.WriteString(w, "event: current\ndata: {}\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-seen:
		case <-r.Context().Done():
		}
	})
	var talk bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		code := run([]string{"grants", "watch", "--columns", "task,workload,grant"}, inside, &talk)
		inside.Close() // the end of what is read
		ended <- code
	}()
	var text strings.Builder
	for part, drawn := make([]byte, 4096), false; ; {
		n, err := outside.Read(part)
		if err != nil {
			break
		}
		text.Write(part[:n])
		if !drawn && strings.Contains(text.String(), "gnt_b") {
			drawn = true
			close(seen)
		}
	}
	if code := <-ended; code != exitDenied {
		t.Errorf("exit code %d: %s", code, talk.String())
	}
	if got := text.String(); !strings.Contains(got, "\x1b[H\x1b[2J3 grants, the newest 2   ") || !strings.Contains(got, "TASK  WORKLOAD  GRANT\r\n") || strings.Contains(got, "gnt_c") {
		t.Errorf("%q", got)
	}
}
