package demo_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		if err := demo.Work(context.Background(), os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// worker is the command line of this program as a worker.
func worker(t *testing.T) []string {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, "worker"}
}

// shortDir is a folder whose path leaves room for the name of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "errand-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestTour: every step holds, in order, also for somebody who reads slowly, and nothing is left
// running.
func TestTour(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var names []string
	ok, err := demo.Tour(ctx, demo.TourConfig{Dir: shortDir(t), Worker: worker(t)}, func(s demo.Step) {
		names = append(names, s.Name)
		time.Sleep(demo.Bound + demo.Bound/10)
		if !s.OK || s.Detail == "" || s.Took <= 0 {
			t.Errorf("%+v", s)
		}
	})
	if !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if got := strings.Join(names, " "); got != "identities task token use done reuse theft crash cascade incident" {
		t.Errorf("the steps are %s", got)
	}
}

func TestMistakes(t *testing.T) {
	for name, c := range map[string]demo.Config{
		"not loopback":       {WorkloadAddr: "0.0.0.0:0"},
		"a host name":        {OrdersAddr: "localhost:0"},
		"no port":            {OpsAddr: "127.0.0.1"},
		"a path as identity": {Identities: []string{"a/b"}},
		"a space":            {Identities: []string{"a b"}},
		"the broker's name":  {Identities: []string{demo.BrokerName}},
		"the same twice":     {Identities: []string{"a", "a"}},
		"address in use":     {OrdersAddr: "127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			c.Dir = shortDir(t)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if name == "address in use" {
				busy, err := demo.Start(ctx, demo.Config{Dir: shortDir(t)})
				if err != nil {
					t.Fatal(err)
				}
				defer busy.Close()
				c.WorkloadAddr, c.OrdersAddr = strings.TrimPrefix(busy.BrokerURL, "https://"), ""
			}
			l, err := demo.Start(ctx, c)
			if err == nil {
				l.Close()
				t.Error("accepted")
			}
		})
	}
	if _, err := demo.Describe(t.TempDir()); !errors.Is(err, demo.ErrNotRunning) {
		t.Errorf("an empty folder: %v", err)
	}
}

// TestFastTour waits for no lease.
func TestFastTour(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ok, err := demo.Tour(ctx, demo.TourConfig{Dir: shortDir(t), Worker: worker(t), Fast: true}, func(s demo.Step) {
		if s.Name == "crash" && !strings.Contains(s.Detail, "with presence") {
			t.Errorf("%+v", s)
		}
	})
	if !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

// TestCrashSaysWhatIsWrong with a process that does not start, or not its task.
func TestCrashSaysWhatIsWrong(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, argv := range map[string][]string{"no program": {"/nonexistent"}, "one that fails": {"sh", "-c", "echo it is broken >&2; exit 1"}} {
		var last demo.Step
		ok, err := demo.Tour(ctx, demo.TourConfig{Dir: shortDir(t), Worker: argv}, func(s demo.Step) { last = s })
		if ok || err != nil || last.Name != "crash" || last.OK || !strings.Contains(last.Detail, map[string]string{"no program": "nonexistent", "one that fails": "it is broken"}[name]) {
			t.Errorf("%s: %v, %v, %+v", name, ok, err, last)
		}
	}
}

// TestAWorkerEndsWithWhoStartedIt, whatever it is doing: the other end of its standard input is closed then, also
// by the kernel.
func TestAWorkerEndsWithWhoStartedIt(t *testing.T) {
	local, err := demo.Start(t.Context(), demo.Config{Dir: shortDir(t), Identities: []string{"report"}})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	orders := func(socket string) string {
		return fmt.Sprintf(`{"broker_url":%q,"broker_id":%q,"socket":%q,"lease":30000000000}`+"\n", local.BrokerURL, local.BrokerID, socket)
	}
	for name, text := range map[string]string{
		"without orders": "", "with no identity yet": orders("unix:///nonexistent"), "at work": orders(local.Sockets["report"]),
	} {
		in, leash := io.Pipe()
		out, said := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- demo.Work(t.Context(), in, said); said.Close() }()
		_, _ = io.WriteString(leash, text)
		if name == "at work" {
			if line, err := bufio.NewReader(out).ReadString('\n'); !strings.Contains(line, `"task":"tsk_`) {
				t.Errorf("it says %q, %v", line, err)
			}
		}
		leash.Close()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Errorf("%s it goes on", name)
		}
		out.Close()
	}
}
