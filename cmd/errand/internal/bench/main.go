// Command bench measures what a broker costs on this machine: run it with go run, or make bench. It
// starts a real redis-server, a broker as a process of its own, and a load generator over mutual
// TLS, on loopback alone, and prints a table. It promises the processor time of the broker and of
// Redis beside that of one raw P-256 signature in the same run, since that is what stays the same on
// a machine with other work to do; rates and times do not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	clients   []int
	verifiers []int
	grants    int
	tree      int
	tasks     int
	lapses    int
	selected  int
	length    time.Duration
	ends      int
	profile   string
	of        string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == brokerCommand {
		if err := runBroker(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench: broker:", err)
			os.Exit(1)
		}
		return
	}
	o, err := parse(os.Args[1:])
	if err != nil {
		os.Exit(2)
	}
	signal.Ignore(syscall.SIGPIPE) // a reader that has gone must not leave the processes behind
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	clients := flags.String("clients", "1,16,64", "callers at once, one connection each")
	verifiers := flags.String("verifiers", "1,50,200,500", "connected verifiers")
	flags.IntVar(&o.grants, "grants", 1_000_000, "live grants whose memory is measured; 0 for none")
	flags.IntVar(&o.tree, "tree", 100_000, "tasks below one that is ended; 0 for none")
	flags.IntVar(&o.tasks, "tasks", 100_000, "tasks that are beaten; 0 for none")
	flags.IntVar(&o.lapses, "lapses", 10_000, "leases that end in about a second; 0 for none")
	flags.IntVar(&o.selected, "selected", 100_000, "live grants that an operator revokes by a selector; 0 for none")
	flags.DurationVar(&o.length, "length", 3*time.Second, "how long each load lasts")
	flags.IntVar(&o.ends, "ends", 100, "ends that the verifiers are timed on")
	flags.StringVar(&o.profile, "profile", "", "write a CPU profile of the broker to this file")
	flags.StringVar(&o.of, "of", whatBegin, "the load that is profiled, with the most callers")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.clients, err = numbers(*clients); err == nil {
		o.verifiers, err = numbers(*verifiers)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	return o, err
}

func numbers(list string) (out []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxClients {
			return nil, fmt.Errorf("%q is not a number from 1 to %d", text, maxClients)
		}
		out = append(out, n)
	}
	return out, nil
}

// run makes the place, measures, and takes it away again.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	p, err := newPlace(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	fmt.Fprintln(out, "| | callers | a second | p50 | p99 | a raw signature | broker | Redis | both, in raw signatures | allocations |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|---|---|")
	var asked []string
	for _, n := range o.clients {
		lines, err := p.measure(ctx, n, o)
		if err != nil {
			return err
		}
		for _, l := range lines {
			fmt.Fprintln(out, l.row())
			if l.what == whatDo {
				asked = append(asked, fmt.Sprintf("%.2f", l.asked))
			}
		}
	}
	fmt.Fprintf(out, "\n%s is, for each number of callers, so many requests to the broker: %s. Heartbeats count, too.\n", whatDo, strings.Join(asked, ", "))
	fmt.Fprintln(out, "\n| an end is refused | after the request: p50 | p99 | after the answer: p50 | p99 | slowest | and then |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|")
	for _, n := range o.verifiers {
		times, err := p.refusals(ctx, n, o)
		if err != nil {
			return err
		}
		asked, answered := times.fromRequest, times.fromAnswer
		fmt.Fprintf(out, "| at %d verifiers | %s ms | %s ms | %s ms | %s ms | %s ms | %s |\n", n,
			milli(asked.at(50)), milli(asked.at(99)), milli(answered.at(50)), milli(answered.at(99)), milli(answered.at(100)), times.steady)
	}
	ack, err := p.ack(ctx, o.length)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nAn acknowledgement takes the broker %.0f µs, and Redis %.0f µs.\n", micro(ack.broker), micro(ack.redis))
	if o.tree > 0 {
		t, err := p.fell(ctx, o.tree)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s\n", t)
	}
	if o.selected > 0 {
		s, err := p.revoke(ctx, o.selected)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s\n", s)
	}
	if err := p.leases(ctx, o, out); err != nil {
		return err
	}
	if o.grants == 0 {
		return nil
	}
	m, err := p.fill(ctx, o.grants)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%d live grants in %d tasks take %d MB in Redis: %d bytes for each grant, its share of a task of %d included.\n",
		m.grants, m.tasks, m.bytes>>20, m.bytes/int64(m.grants), m.grants/m.tasks)
	return nil
}

func micro(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func milli(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }
