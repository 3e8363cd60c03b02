package identity_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"testing"

	"github.com/errandhq/errand/broker/identity"
)

// request is one of a connection whose Peer it shares, as http.Server makes them.
func request(peer svid) *http.Request {
	r := &http.Request{
		RemoteAddr: "192.0.2.1:4711",
		TLS:        &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: peer.certs()},
	}
	return r
}

// The verdict is kept: a further request costs next to nothing, a full check hundreds of
// allocations. A refusal is kept as well.
func TestVerdictIsKept(t *testing.T) {
	h := newHouse(t, nil)
	for name, peer := range map[string]svid{"accepted": h.root.issue(t, worker), "refused": newAuthority(t).issue(t, worker)} {
		kept := request(peer)
		kept = kept.WithContext(identity.ConnContext(t.Context(), nil))
		anew := request(peer)
		workload := func(r *http.Request) float64 {
			return testing.AllocsPerRun(20, func() {
				if _, err := h.source.Workload(r); (err == nil) != (name == "accepted") {
					t.Error(err)
				}
			})
		}
		if cheap, full := workload(kept), workload(anew); cheap > 2 || full < 20 {
			t.Errorf("%s: %v allocations when kept, %v when made anew", name, cheap, full)
		}
	}
}

// A Peer that is asked about another certificate than its own judges that one.
func TestVerdictIsOfOneCertificate(t *testing.T) {
	h := newHouse(t, nil)
	ctx := identity.ConnContext(t.Context(), nil)
	ours := request(h.root.issue(t, worker)).WithContext(ctx)
	if w, err := h.source.Workload(ours); err != nil || w.ID.String() != worker || w.Address != "192.0.2.1:4711" {
		t.Fatalf("%v, %v", w, err)
	}
	if w, err := h.source.Workload(request(newAuthority(t).issue(t, worker)).WithContext(ctx)); !errors.Is(err, identity.ErrIdentity) || !w.ID.IsZero() {
		t.Errorf("a stranger on the same Peer: %v, %v", w, err)
	}
	if w, err := h.source.Workload(request(h.root.issue(t, worker+"2")).WithContext(ctx)); err != nil || w.ID.String() != worker+"2" {
		t.Errorf("another workload on the same Peer: %v, %v", w, err)
	}
}

// Two Sources never take each other's verdicts, whatever their generations.
func TestVerdictIsOfOneSource(t *testing.T) {
	a, b := newHouse(t, nil), newHouse(t, nil)
	r := request(a.root.issue(t, worker)).WithContext(identity.ConnContext(t.Context(), nil))
	if _, err := a.source.Workload(r); err != nil {
		t.Fatal(err)
	}
	if _, err := b.source.Workload(r); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a verdict of another source was used: %v", err)
	}
}

// Requests of one connection come at once, while bundles change. Run with -race.
func TestVerdictUnderChange(t *testing.T) {
	h := newHouse(t, nil)
	r := request(h.root.issue(t, worker)).WithContext(identity.ConnContext(t.Context(), nil))
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 200 {
				if w, err := h.source.Workload(r); err != nil || w.ID.String() != worker {
					t.Errorf("%v, %v", w, err)
					return
				}
			}
		})
	}
	for range 5 {
		generation := h.source.Generation()
		h.files.write("bundle.pem", certPEM(h.root.cert.Raw, newAuthority(t).cert.Raw))
		eventually(t, "a new generation", func() bool { return h.source.Generation() > generation })
	}
	callers.Wait()
}
