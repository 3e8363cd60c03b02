package identity

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"sync"

	"github.com/errandhq/errand/broker"
)

// Peer is the verdict on the other end of one TLS connection. A full check costs several
// signatures, so it is kept for as long as the trust that it was made by is in force.
type Peer struct {
	mu      sync.Mutex // guards all below
	trust   *trust     // nil before the first verdict
	leaf    *x509.Certificate
	verdict verdict
	err     error
}

type peerKey struct{}

// ConnContext is for http.Server.ConnContext: it gives each connection its Peer.
func ConnContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, new(Peer))
}

// Workload returns who sent the request, by the bundles of this moment. It is cheap while they stay
// the same, and meant to be called for every request, and for every message of a long answer. Every
// error is ErrIdentity.
func (s *Source) Workload(r *http.Request) (broker.Workload, error) {
	if r.TLS == nil || !r.TLS.HandshakeComplete {
		return broker.Workload{}, refuse("the connection has no TLS")
	}
	peer, ok := r.Context().Value(peerKey{}).(*Peer)
	if !ok {
		peer = new(Peer)
	}
	w, err := peer.workload(s, r.TLS.PeerCertificates)
	if err != nil {
		return broker.Workload{}, err
	}
	w.Address = r.RemoteAddr
	return w, nil
}

// workload returns the verdict that was kept, or makes it anew. A refusal is kept as well, so that
// repeating it costs nothing; the peer comes back on another connection.
func (p *Peer) workload(s *Source, certs []*x509.Certificate) (broker.Workload, error) {
	t, err := s.trust()
	if err != nil {
		return broker.Workload{}, refuse("%w", err)
	}
	if len(certs) == 0 {
		return broker.Workload{}, checkChain(nil)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := s.now()
	if kept := p.trust == t && p.leaf == certs[0]; !kept || p.err == nil && now.After(p.verdict.until) {
		p.verdict, p.err = s.judge(t, certs, now)
		p.trust, p.leaf = t, certs[0]
	}
	return p.verdict.workload, p.err
}
