package sdk_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk"
)

// workloadVariable makes the test binary a workload of its own.
const workloadVariable = "ERRAND_TEST_WORKLOAD"

// workloadProcess has a task with a token in memory, and asks for the token again for each line that
// it reads.
func workloadProcess() int {
	if os.Getenv(workloadVariable) == "present" {
		return presentProcess()
	}
	ctx := context.Background()
	client, err := sdk.New(ctx, sdk.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	task, err := client.Begin(ctx, exportSpec)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for in := bufio.NewScanner(os.Stdin); ; {
		switch token, err := task.Token(ctx, ordersRead); {
		case err == nil:
			fmt.Println("token", token.GrantID)
		case errors.Is(err, sdk.ErrLeaseLost):
			fmt.Println("lease lost")
		default:
			fmt.Println(err)
		}
		if !in.Scan() {
			return 0
		}
	}
}

// A process that was stopped for longer than two thirds of its lease hands out no token when it goes
// on, whether or not its timers have noticed.
func TestSIGSTOPComparesTheGapWithTheLeaseBeforeAnyTokenLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.lease = 6
	dir := t.TempDir()
	writeSVID(t, dir, w.who.svid, w.ca.Bundle())
	child := exec.Command(must(os.Executable())(t))
	child.Env = append(os.Environ(), workloadVariable+"=1", "ERRAND_BROKER_URL="+w.broker.String(), "ERRAND_BROKER_ID="+brokerID.String(),
		"SPIFFE_ENDPOINT_SOCKET=", "ERRAND_IDENTITY_DIR="+dir)
	in, out := must(child.StdinPipe())(t), bufio.NewScanner(must(child.StdoutPipe())(t))
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = child.Process.Kill(); _ = child.Wait() }() // which one that is stopped would not leave by itself
	says := func() string { out.Scan(); return out.Text() }
	first := says()
	fmt.Fprintln(in)
	if again := says(); !strings.HasPrefix(first, "token gnt_") || again != first {
		t.Fatalf("it says %q and %q", first, again)
	}
	// A heartbeat that is answered after it goes on would be as good as one before.
	w.on(heartbeats, away)
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4100 * time.Millisecond) // two thirds of the lease, which is what is tested
	fmt.Fprintln(in)
	if err := child.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := says(); got != "lease lost" {
		t.Errorf("it says %q", got)
	}
	if n := len(w.got(tokens)); n != 0 {
		t.Errorf("%d tokens were asked for", n)
	}
}
