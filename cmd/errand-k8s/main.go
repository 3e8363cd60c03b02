// Command errand-k8s tells an Errand broker which Jobs and Pods of a Kubernetes cluster have ended, and how:
// the tasks that carry them as their ref end at that moment, instead of with their lease. It is a source in
// the broker's inventory, and can do nothing else there.
//
// Start with run, which makes a watcher of informers and a queue of ends; README.md is for whoever runs it.
// What is promised: the end of an object that is there when the program starts, or is seen to go while it
// runs, is told until the broker has taken or refused it; memory is bounded by the objects that are watched. An
// object that goes while the program is away, or while as many ends wait as the queue holds, is told by nobody: its
// tasks end with their leases.
//
// A watch with a selector calls an object deleted when it only stops matching, as when its label is taken off; so does
// a new list from a server that lags behind. So none that ran when it was last seen is taken for gone before the API
// server itself, asked for it by name, has none of that UID. One that is there and has ended has ended so. One that is
// there and runs is left alone, and followed no more. When there is no answer the question is repeated, for 10 minutes
// and 30 times at most, and then nothing is ended: no list that comes later would name an object that is gone, but 10
// minutes are the longest lease, so the tasks that nobody keeps alive any more have lapsed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/errandhq/errand/sdk"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// closeTimeout bounds what is left to do when the program stops.
const closeTimeout = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "errand-k8s:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	kubeconfig, selector, health string
	namespaces                   []string // none: all
}

func parse(args []string, out io.Writer) (o options, err error) {
	f := flag.NewFlagSet("errand-k8s", flag.ContinueOnError)
	f.SetOutput(out)
	f.Usage = func() {
		fmt.Fprint(out, `errand-k8s ends the tasks of Jobs and Pods that have ended. The broker, and who this program is, come from
ERRAND_BROKER_URL, ERRAND_BROKER_ID, and SPIFFE_ENDPOINT_SOCKET or ERRAND_IDENTITY_DIR.

`)
		f.PrintDefaults()
	}
	var namespaces string
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "a kubeconfig `file` (default the Pod's service account)")
	f.StringVar(&o.selector, "selector", "errand/task", "the label `selector` of Jobs and Pods to watch; empty for all")
	f.StringVar(&namespaces, "namespaces", "", "the `names` of the namespaces to watch, with commas between; empty for all")
	f.StringVar(&o.health, "health-address", ":8081", "where /healthz and /readyz are; empty for nowhere")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("there is an argument, %q; only flags are taken", f.Arg(0))
	}
	if _, err := labels.Parse(o.selector); err != nil {
		return o, fmt.Errorf("--selector: %w", err)
	}
	for name := range strings.SplitSeq(namespaces, ",") {
		if name = strings.TrimSpace(name); name != "" {
			o.namespaces = append(o.namespaces, name)
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("no way to the cluster: %w; run in a Pod, or name a file with --kubeconfig", err)
	}
	config.QPS, config.Burst = checksPerSecond, 2*checksPerSecond // its own 5 would be slow when a large namespace goes
	cluster, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	broker, err := sdk.New(ctx, sdk.WithLogger(log))
	if err != nil {
		return err
	}
	w := newWatcher(cluster, broker, log, o)
	listener := io.Closer(io.NopCloser(nil))
	if o.health != "" {
		l, err := net.Listen("tcp", o.health)
		if err != nil {
			return errors.Join(fmt.Errorf("--health-address: %w", err), broker.Close(ctx))
		}
		server := &http.Server{Handler: health(w, broker.Healthy), ReadHeaderTimeout: closeTimeout, ReadTimeout: closeTimeout, WriteTimeout: closeTimeout}
		go func() { _ = server.Serve(l) }() // until it is closed
		listener = server
	}
	w.run(ctx)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(listener.Close(), broker.Close(closing))
}

// health is ready once all that was there has been listed, while there is an identity to tell it with.
func health(w *watcher, identity func() error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "ok") })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		err := identity()
		if !w.synced() {
			err = errors.New("the Jobs and Pods have not been listed yet")
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "ready;", w.queue.len(), "ends wait")
	})
	return mux
}
