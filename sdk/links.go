package sdk

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Bounds of a connection.
const (
	dialTimeout      = 5 * time.Second
	handshakeTimeout = 5 * time.Second
	idleTimeout      = 30 * time.Second
	idlePerHost      = 100
	maxHeaderBytes   = 64 << 10
)

// links has the connections of the current generation.
type links struct {
	opened
	id      spiffeid.ID // the workload's own
	broker  spiffeid.ID
	connect func(*generation, spiffeid.ID)

	mu      sync.Mutex
	current *generation
	old     *generation // the one before, which may have requests still
}

// generation is one SVID with the bundles of its time, and the connections that were made with
// them. A token that is bound to a certificate goes over the generation that has it.
type generation struct {
	svid    *x509svid.SVID
	leaf    [sha256.Size]byte // of its certificate
	bundles []*x509bundle.Bundle
	retired atomic.Bool

	broker  http.RoundTripper // accepts the broker alone
	servers http.RoundTripper // accepts every member of the workload's trust domain

	pin    func(servers []string) (http.RoundTripper, error) // makes one that accepts these alone; nil in some tests
	mu     sync.Mutex                                        // guards pinned
	pinned map[string]http.RoundTripper                      // by the servers' IDs
}

// maxPinned bounds the sets of servers that a generation has connections for: one for an audience.
const maxPinned = 64

// to returns the connections to an audience's servers. Without any that are named, every member of
// the trust domain is one.
func (g *generation) to(servers []string) (http.RoundTripper, error) {
	if len(servers) == 0 || g.pin == nil {
		return g.servers, nil
	}
	key := strings.Join(servers, " ")
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.pinned[key]; t != nil {
		return t, nil
	}
	if len(g.pinned) >= maxPinned {
		return nil, fmt.Errorf("sdk: %w: more than %d audiences with servers of their own", ErrHost, maxPinned)
	}
	t, err := g.pin(servers)
	if err != nil {
		return nil, err
	}
	if g.pinned == nil {
		g.pinned = map[string]http.RoundTripper{}
	}
	g.pinned[key] = t
	return t, nil
}

// newLinks finds out who the workload is. The sources have an SVID already.
func newLinks(from opened, broker spiffeid.ID, connect func(*generation, spiffeid.ID)) (*links, error) {
	svid, err := from.svids.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("sdk: %w: %w", ErrNoIdentity, err)
	}
	return &links{opened: from, id: svid.ID, broker: broker, connect: connect}, nil
}

// use returns the generation of now. A new SVID or bundle makes a new one for requests to come; the
// connections of the one before are closed as their requests end. The bundles count, since a
// connection would outlive the removal of the authority that vouched for its other end.
func (l *links) use() (*generation, error) {
	svid, bundles, err := l.trust()
	if err != nil {
		return nil, fmt.Errorf("sdk: %w: %w", ErrNoIdentity, err)
	}
	leaf := sha256.Sum256(svid.Certificates[0].Raw)
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.current; g != nil && g.leaf == leaf && equalBundles(g.bundles, bundles) {
		return g, nil
	}
	g := &generation{svid: svid, leaf: leaf}
	for _, bundle := range bundles {
		// The source's own may change in place.
		g.bundles = append(g.bundles, bundle.Clone())
	}
	l.connect(g, l.broker)
	l.old.retire()
	l.current.retire()
	l.old, l.current = l.current, g
	return g, nil
}

// trust asks the sources, and refuses to become another workload.
func (l *links) trust() (*x509svid.SVID, []*x509bundle.Bundle, error) {
	svid, err := l.svids.GetX509SVID()
	if err != nil {
		return nil, nil, err
	}
	if svid.ID != l.id {
		return nil, nil, fmt.Errorf("the SVID is %s now, and was %s when the client was made; make a new client", svid.ID, l.id)
	}
	domains := []spiffeid.TrustDomain{l.id.TrustDomain()}
	if l.broker.TrustDomain() != domains[0] {
		domains = append(domains, l.broker.TrustDomain())
	}
	var bundles []*x509bundle.Bundle
	for _, domain := range domains {
		bundle, err := l.bundles.GetX509BundleForTrustDomain(domain)
		if err != nil {
			return nil, nil, fmt.Errorf("no trust bundle of %s: %w", domain, err)
		}
		bundles = append(bundles, bundle)
	}
	return svid, bundles, nil
}

func equalBundles(a, b []*x509bundle.Bundle) bool {
	return slices.EqualFunc(a, b, (*x509bundle.Bundle).Equal)
}

// close ends the connections and the source.
func (l *links) close() error {
	l.mu.Lock()
	l.old.retire()
	l.current.retire()
	l.mu.Unlock()
	return l.release()
}

// retire closes connections that are idle now, and makes those that are not close when they are.
func (g *generation) retire() {
	if g == nil {
		return
	}
	g.retired.Store(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, transport := range append(slices.Collect(maps.Values(g.pinned)), g.broker, g.servers) {
		if t, ok := transport.(interface{ CloseIdleConnections() }); ok {
			t.CloseIdleConnections()
		}
	}
}

// connectTLS makes the transports of a generation: TLS 1.3 with its SVID.
func connectTLS(g *generation, broker spiffeid.ID) {
	bundles := x509bundle.NewSet(g.bundles...)
	g.broker = newTransport(tlsconfig.MTLSClientConfig(g.svid, bundles, authorizeBroker(broker)))
	g.servers = newTransport(tlsconfig.MTLSClientConfig(g.svid, bundles, tlsconfig.AuthorizeMemberOf(g.svid.ID.TrustDomain())))
	g.pin = func(servers []string) (http.RoundTripper, error) {
		var ids []spiffeid.ID
		for _, server := range servers {
			id, err := spiffeid.FromString(server)
			if err != nil {
				return nil, fmt.Errorf("%w: it names a server %q: %w", ErrUnavailable, server, err)
			}
			ids = append(ids, id)
		}
		return newTransport(tlsconfig.MTLSClientConfig(g.svid, bundles, tlsconfig.AuthorizeOneOf(ids...))), nil
	}
}

// authorizeBroker says who is there if it is not the broker.
func authorizeBroker(broker spiffeid.ID) tlsconfig.Authorizer {
	return func(id spiffeid.ID, _ [][]*x509.Certificate) error {
		if id != broker {
			return &impostor{is: id, want: broker}
		}
		return nil
	}
}

// newTransport has no session cache, so every connection is verified, and knows no proxy.
func newTransport(config *tls.Config) *http.Transport {
	config.MinVersion = tls.VersionTLS13
	return &http.Transport{
		TLSClientConfig:        config,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:    handshakeTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    idlePerHost,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ExpectContinueTimeout:  time.Second,
	}
}
