package devmode

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
)

// MaxIdentities bounds the sockets of one WorkloadAPI.
const MaxIdentities = 1000

// maxTick is the longest time between two looks at what is due, so that a laptop that was asleep
// soon has fresh SVIDs.
const maxTick = 10 * time.Second

// WorkloadAPI serves the X.509 part of the SPIFFE Workload API, one Unix socket per identity. Call
// Run for as long as it lives, and Add before or during that; Close ends one that was never run.
type WorkloadAPI struct {
	ca   *CA
	dir  string
	life time.Duration

	serving sync.WaitGroup
	failed  chan error // what a server ended with

	mu        sync.Mutex // guards all below, and what is marked in endpoint
	phase     phase
	endpoints map[spiffeid.ID]*endpoint
	federated []*x509bundle.Bundle
}

// phase is where a WorkloadAPI is in its life. It never goes back.
type phase int

const (
	idle phase = iota
	running
	closed
)

// errClosed: the sockets are gone.
var errClosed = errors.New("devmode: the Workload API has been closed; make a new one")

// NewWorkloadAPI serves SVIDs of the CA from sockets in a directory, which the first Add makes. The
// life of an SVID is DefaultLife when zero.
func NewWorkloadAPI(ca *CA, dir string, life time.Duration) *WorkloadAPI {
	if life == 0 {
		life = DefaultLife
	}
	return &WorkloadAPI{
		ca: ca, dir: dir, life: life, failed: make(chan error, 1), endpoints: map[spiffeid.ID]*endpoint{},
	}
}

// Add makes a socket for an identity, and returns its address as SPIFFE_ENDPOINT_SOCKET has it:
// "unix:///home/me/.errand/report.sock". It can be dialed at once; calls are answered while Run
// runs. Adding an identity again returns the same address.
func (w *WorkloadAPI) Add(id spiffeid.ID) (addr string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == closed {
		return "", errClosed
	}
	if e, ok := w.endpoints[id]; ok {
		return e.addr, nil
	}
	if len(w.endpoints) >= MaxIdentities {
		return "", fmt.Errorf("devmode: there are %d identities already, and no more are served", MaxIdentities)
	}
	svid, err := w.ca.Issue(id, w.life)
	if err != nil {
		return "", err
	}
	dir, err := filepath.Abs(w.dir)
	if err != nil {
		return "", fmt.Errorf("devmode: the directory for sockets: %w", err)
	}
	if err := ownDirectory(dir); err != nil {
		return "", err
	}
	path := filepath.Join(dir, socketName(id))
	l, err := listen(path)
	if err != nil {
		return "", err
	}
	e := newEndpoint(w, svid, l, "unix://"+path)
	w.endpoints[id] = e
	if w.phase == running {
		w.serve(e)
	}
	return e.addr, nil
}

// Rotate gives an identity a new SVID with a new key, and pushes it to everybody who watches.
func (w *WorkloadAPI) Rotate(id spiffeid.ID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.endpoints[id]
	if !ok {
		return fmt.Errorf("devmode: %q has not been added", id)
	}
	return w.rotate(e)
}

// Federate replaces the bundles of other trust domains that every identity is given, and pushes
// them. One that is left out is no longer trusted.
func (w *WorkloadAPI) Federate(bundles ...*x509bundle.Bundle) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.federated = slices.Clone(bundles)
	for _, e := range w.endpoints {
		e.push()
	}
}

// Run serves, and rotates each SVID soon after half of its life, until ctx ends. It returns the
// context's error, or why it could not go on; the sockets are gone then.
func (w *WorkloadAPI) Run(ctx context.Context) error {
	if err := w.start(); err != nil {
		return err
	}
	defer w.Close()
	tick := time.NewTicker(max(min(w.life/8, maxTick), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-w.failed:
			return err
		case <-tick.C:
		}
		if err := w.rotateDue(); err != nil {
			return err
		}
	}
}

func (w *WorkloadAPI) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.phase {
	case running:
		return errors.New("devmode: the Workload API is running already")
	case closed:
		return errClosed
	}
	w.phase = running
	for _, e := range w.endpoints {
		w.serve(e)
	}
	return nil
}

// serve answers on the endpoint's socket until Close. The caller holds mu.
func (w *WorkloadAPI) serve(e *endpoint) {
	w.serving.Go(func() {
		err := e.server.Serve(e.listener)
		if err == nil || errors.Is(err, grpc.ErrServerStopped) {
			return
		}
		select {
		case w.failed <- fmt.Errorf("devmode: serving %s: %w", e.addr, err):
		default: // an earlier one is being reported
		}
	})
}

// rotateDue rotates what has lived for half of its life.
func (w *WorkloadAPI) rotateDue() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.ca.now()
	for _, e := range w.endpoints {
		if now.Before(e.svid.Certificates[0].NotAfter.Add(-w.life / 2)) {
			continue
		}
		if err := w.rotate(e); err != nil {
			return err
		}
	}
	return nil
}

// rotate expects that the caller holds mu.
func (w *WorkloadAPI) rotate(e *endpoint) error {
	svid, err := w.ca.Issue(e.svid.ID, w.life)
	if err != nil {
		return err
	}
	e.svid = svid
	e.push()
	return nil
}

// Close ends all streams and removes the sockets. Run calls it; a second call does nothing.
func (w *WorkloadAPI) Close() error {
	w.mu.Lock()
	w.phase = closed
	ended := slices.Collect(maps.Values(w.endpoints))
	clear(w.endpoints)
	w.mu.Unlock()

	for _, e := range ended {
		e.server.Stop()
		// Serve closes it too; one that was never served has nobody else.
		e.listener.Close()
	}
	w.serving.Wait()
	return nil
}
