package main

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	testscript.Main(leakFree{m}, map[string]func(){"errand": main})
}

// leakFree fails the run when a test leaves a goroutine behind.
type leakFree struct{ m *testing.M }

func (l leakFree) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return code
}

// TestScripts runs the stories in testdata: each is a file that reads as documentation.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			// Sockets have short paths; the script's own folder may not.
			dir, err := os.MkdirTemp("", "errand-script-")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("SHORT", dir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ready": ready, "busy": busy, "pause": pauseShort, "exitcode": exitCode},
	})
}

// ready waits until a file with the description of a development broker is there, and the broker
// that it describes says that it is ready.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ready FILE")
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err != nil {
			continue
		}
		_, rest, ok := strings.Cut(string(text), `"ops_url": "`)
		if !ok {
			continue
		}
		ops, _, _ := strings.Cut(rest, `"`)
		resp, err := http.Get(ops + "/readyz")
		if err != nil {
			continue
		}
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		if resp.StatusCode == http.StatusOK {
			return
		}
	}
	ts.Fatalf("not ready within 20 seconds")
}

// pauseShort lets a program in the background get under way.
func pauseShort(*testscript.TestScript, bool, []string) { time.Sleep(time.Second) }

// busy sets BUSY to an address that the development broker of a description is using.
func busy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: busy FILE")
	}
	_, rest, _ := strings.Cut(ts.ReadFile(args[0]), `"broker_url": "https://`)
	address, _, _ := strings.Cut(rest, `"`)
	ts.Setenv("BUSY", address)
}

// exitCode runs a command line and compares its exit code.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N errand ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}
