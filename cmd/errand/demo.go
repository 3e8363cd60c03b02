package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"github.com/spf13/cobra"
)

// pause lets a person read a step before the next one.
const pause = 700 * time.Millisecond

func newDemo() *cobra.Command {
	var fast bool
	var output string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch a token live exactly as long as its task",
		Long: `demo runs everything in this one process, on loopback and in memory: a dev CA with the
SPIFFE Workload API, the broker, a workload, a resource server that verifies offline,
and a stranger. It shows ten steps with the times that it measured, and leaves nothing
behind. For the step crash it starts another process of the workload, and kills it.

The task of that process has a lease of five seconds, which runs out; with --fast it has
presence instead, and ends within two seconds of the loss of its connection. With -o json
each step is an object. The exit code is 0 only if every step held.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd, fast, output)
		},
	}
	cmd.Flags().BoolVar(&fast, "fast", false, "do not pause between the steps, nor wait for a lease")
	outputFlag(cmd, &output, said)
	cmd.AddCommand(newDemoWorker())
	return cmd
}

// newDemoWorker is for the tour, which starts this program once more with it.
func newDemoWorker() *cobra.Command {
	return &cobra.Command{
		Use:    "worker",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Work(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

func runDemo(cmd *cobra.Command, fast bool, output string) error {
	dir, err := os.MkdirTemp("", "errand-demo-")
	if err != nil {
		return fmt.Errorf("no folder for the sockets: %w; set TMPDIR to a short folder that you can write to", err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	config := demo.TourConfig{Dir: dir, Worker: []string{self, "demo", "worker"}, Fast: fast}
	out := cmd.OutOrStdout()
	show := showJSON(out)
	if output == "text" {
		fmt.Fprintf(out, "errand %s demo: on loopback and in memory alone; it leaves nothing behind\n\n", Version)
		show = showText(cmd.Context(), out, fast)
	}
	ok, err := demo.Tour(cmd.Context(), config, show)
	if cmd.Context().Err() != nil {
		return errInterrupted
	}
	if err != nil {
		return err
	}
	if !ok {
		fmt.Fprintln(cmd.ErrOrStderr(), "errand: a step did not hold; see above")
		return errFailed
	}
	if output == "text" {
		fmt.Fprintln(out, "\nNext, until Ctrl-C, for curl and your own code:  go build -o errand ./cmd/errand && ./errand dev")
	}
	return nil
}

func showJSON(out io.Writer) func(demo.Step) {
	encoder := json.NewEncoder(out)
	return func(s demo.Step) { _ = encoder.Encode(s) }
}

func showText(ctx context.Context, out io.Writer, fast bool) func(demo.Step) {
	n := 0
	return func(s demo.Step) {
		if n++; n > 1 && !fast {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return
		}
		mark := ""
		if !s.OK {
			mark = "FAILED"
		}
		fmt.Fprintln(out, strings.TrimRight(fmt.Sprintf("%2d %-11s %-66s %8.1f ms %s", n, s.Name, s.Detail, float64(s.Took.Microseconds())/1000, mark), " "))
		for _, line := range s.More {
			fmt.Fprintln(out, strings.Repeat(" ", 14), line)
		}
	}
}
