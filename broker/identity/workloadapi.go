package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Pauses between two attempts to reach the Workload API. The longest is short, because an agent that
// is back has perhaps a new bundle that matters.
const (
	minRetry = 100 * time.Millisecond
	maxRetry = 5 * time.Second
)

// FromWorkloadAPI follows a SPIFFE Workload API, as SPIRE's agent serves it. The address is as
// "unix:///run/spire/agent/api.sock" or "tcp://127.0.0.1:8081"; "" means the environment variable
// SPIFFE_ENDPOINT_SOCKET. The default SVID is taken, and all bundles, federated ones too.
func FromWorkloadAPI(addr string, log *slog.Logger) *Source {
	if addr == "" {
		addr = os.Getenv(workloadapi.SocketEnv)
	}
	return newSource(workloadAPI(addr), log)
}

// workloadAPI is the address of one.
type workloadAPI string

func (a workloadAPI) String() string { return fmt.Sprintf("the Workload API at %q", string(a)) }

func (a workloadAPI) follow(ctx context.Context, s *Source) error {
	if a == "" {
		return errors.New("its address is not known; set " + workloadapi.SocketEnv + " or give one, as unix:///run/spire/agent/api.sock")
	}
	client, err := workloadapi.New(ctx,
		workloadapi.WithAddr(string(a)),
		workloadapi.WithBackoffStrategy(retries{}),
		workloadapi.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: minRetry, Multiplier: 2, MaxDelay: maxRetry}, MinConnectTimeout: maxRetry,
		})),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	again := retries{}.NewBackoff()
	for {
		err := client.WatchX509Context(ctx, watcher{s})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case status.Code(err) == codes.InvalidArgument:
			// A repetition would be refused too (SPIFFE Workload API, §4.2).
			return fmt.Errorf("it refuses to answer: %w", err)
		}
		s.lose()
		// The client gives up when the other side says that the call was canceled, as an agent does
		// that stops. It will be back.
		select {
		case <-time.After(again.Next()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watcher hands what the client gets to the source. Every update is a full replacement: a trust
// domain that is not in it is no longer trusted.
type watcher struct{ source *Source }

func (w watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	w.source.replace(update.DefaultSVID(), update.Bundles)
}

func (w watcher) OnX509ContextWatchError(err error) {
	w.source.lose()
	if status.Code(err) != codes.Canceled {
		w.source.missAgain(err)
	}
}

// retries is the pause before each attempt: twice the one before, up to maxRetry.
type retries struct{}

func (retries) NewBackoff() workloadapi.Backoff { return newPause(minRetry, maxRetry) }

// pause doubles from first to longest.
type pause struct{ first, longest, next time.Duration }

func newPause(first, longest time.Duration) *pause { return &pause{first, longest, first} }

func (p *pause) Next() time.Duration {
	now := p.next
	p.next = min(2*now, p.longest)
	return now
}

func (p *pause) Reset() { p.next = p.first }
