package httpapi

import (
	"container/list"
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Bounds of every listener.
const (
	ReadTimeout  = 10 * time.Second
	WriteTimeout = 15 * time.Second
	IdleTimeout  = 60 * time.Second
	UserTimeout  = 10 * time.Second // until a peer must have acknowledged what was sent: one that has vanished does not
	MaxHeader    = 16 << 10         // bytes
	MaxStreams   = 100              // concurrent HTTP/2 streams of one connection

	// What an HTTP/2 connection may send before it is read, in bytes: a body, and a few of them.
	streamWindow     = MaxBody
	connectionWindow = 4 * MaxBody
	maxFrame         = 16 << 10
)

// NewServer makes an http.Server with the bounds, and the HandshakeTime of complete limits, for a Listener.
// connContext may be nil, and so may config for a listener without TLS.
func NewServer(h http.Handler, limits Limits, config *tls.Config, connContext func(context.Context, net.Conn) context.Context, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:   retiring(h),
		TLSConfig: config,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if connContext != nil {
				ctx = connContext(ctx, c)
			}
			return context.WithValue(ctx, connKey{}, bounded(c))
		},
		ConnState: func(c net.Conn, s http.ConnState) {
			if k := bounded(c); k != nil && s != http.StateNew {
				k.listener.moved(k, s == http.StateIdle)
			}
		},
		ReadHeaderTimeout: limits.HandshakeTime,
		ReadTimeout:       ReadTimeout,
		WriteTimeout:      WriteTimeout,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    MaxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: MaxStreams, MaxReadFrameSize: maxFrame, WriteByteTimeout: WriteTimeout,
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connectionWindow,
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// retiring has the last answer of a connection that has reached its age say so: "Connection: close" in
// HTTP/1.1, and GOAWAY in HTTP/2, which net/http makes of it.
func retiring(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if until, ok := connectionEnd(r.Context()); ok && !time.Now().Before(until) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

type connKey struct{}

// connectionEnd is when the connection of a request has reached its age.
func connectionEnd(ctx context.Context) (time.Time, bool) {
	c, _ := ctx.Value(connKey{}).(*conn)
	if c == nil {
		return time.Time{}, false
	}
	return c.until, true
}

// Reasons for which a connection is refused.
const (
	refusedTotal   = "connections"
	refusedAddress = "address"
	refusedNew     = "handshakes"
)

// Listener bounds the connections that another listener accepts. One too many is closed at once, or takes
// the place of an idle one of the address that has most, if that has more than its own. Those
// that have not brought a request yet are few, and one more closes the oldest of the address that has
// most of them: a good client needs some milliseconds to get there, and one that is slow on purpose
// seconds, so that those who come to hold places lose them to those who come to work.
type Listener struct {
	net.Listener
	limits  Limits
	refused func(reason string)

	mu        sync.Mutex // guards what follows
	total     int
	fresh     int // of these, without a request
	byAddress map[netip.Prefix]*peers
	freshest  *peers    // has, or had a moment ago, the most fresh ones
	most      *peers    // likewise, the most of all, and idle ones among them
	looked    time.Time // for most
}

// peers are the connections of one address.
type peers struct {
	from  netip.Prefix
	all   int
	fresh list.List // of *conn without a request, the oldest first
	idle  list.List // of *conn between two requests, the one that is longest so first
}

// Bound makes a Listener with complete limits. refused is told of every connection that is not kept.
func Bound(l net.Listener, limits Limits, refused func(reason string)) *Listener {
	return &Listener{Listener: l, limits: limits, refused: refused, byAddress: map[netip.Prefix]*peers{}}
}

// conn is a connection that is counted.
type conn struct {
	net.Conn
	listener *Listener
	from     netip.Prefix
	until    time.Time // when it has reached its age

	// Guarded by the listener's mu.
	peers *peers        // nil until it is counted, and when it is closed
	among *list.List    // the fresh or the idle ones; nil while a request is worked on
	place *list.Element // there
}

// bounded is the connection below TLS, or nil when it is no Listener's.
func bounded(c net.Conn) *conn {
	if over, ok := c.(*tls.Conn); ok {
		c = over.NetConn()
	}
	k, _ := c.(*conn)
	return k
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		setUserTimeout(raw)
		age := l.limits.ConnectionAge
		c := &conn{Conn: raw, listener: l, from: address(raw), until: time.Now().Add(age - age/10 + rand.N(age/5+1))}
		reason, drop := l.take(c)
		if reason != "" {
			l.refused(reason)
		}
		if drop != nil {
			// Nobody is there to be told that it did not close cleanly.
			_ = drop.Close()
		}
		if drop != c {
			return c, nil
		}
	}
}

// take counts a connection, and returns the one to close and why, if there is one.
func (l *Listener) take(c *conn) (reason string, drop *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.byAddress[c.from]
	if p == nil {
		p = &peers{from: c.from}
	}
	switch {
	case p.all >= l.limits.PerAddress:
		return refusedAddress, c
	case l.fresh >= l.limits.Handshakes:
		reason, drop = refusedNew, l.oldestFresh()
	case l.total >= l.limits.Connections:
		if reason, drop = refusedTotal, l.idleFor(p); drop == nil {
			return reason, c
		}
	}
	if drop != nil {
		l.forget(drop)
	}
	l.total++
	l.fresh++
	p.all++
	l.byAddress[c.from], c.peers = p, p
	l.put(c, &p.fresh)
	if l.freshest == nil || p.fresh.Len() >= l.freshest.fresh.Len() {
		l.freshest = p
	}
	return reason, drop
}

// oldestFresh is that of the address that has most of them. There is one. It is called with mu held.
func (l *Listener) oldestFresh() *conn {
	if l.freshest.fresh.Len() == 0 {
		for _, q := range l.byAddress {
			if q.fresh.Len() > l.freshest.fresh.Len() {
				l.freshest = q
			}
		}
	}
	oldest, _ := l.freshest.fresh.Front().Value.(*conn)
	return oldest
}

// lookAgain is how often all addresses are looked at for the one that has most.
const lookAgain = time.Second

// idleFor returns an idle connection that is to make room for one of p, or nil. It is called with mu held.
func (l *Listener) idleFor(p *peers) *conn {
	fits := func() bool { return l.most != nil && l.most.all > p.all+1 && l.most.idle.Len() > 0 }
	if now := time.Now(); !fits() && now.Sub(l.looked) >= lookAgain {
		l.looked, l.most = now, nil
		for _, q := range l.byAddress { // whoever asks: the next one may have less
			if q.idle.Len() > 0 && (l.most == nil || q.all > l.most.all) {
				l.most = q
			}
		}
	}
	if !fits() {
		return nil
	}
	longest, _ := l.most.idle.Front().Value.(*conn)
	return longest
}

// put is called with mu held.
func (l *Listener) put(c *conn, among *list.List) {
	c.among, c.place = among, among.PushBack(c)
}

// pick takes a connection from where it is. It is called with mu held.
func (l *Listener) pick(c *conn) {
	if c.among == nil {
		return
	}
	if c.among == &c.peers.fresh {
		l.fresh--
	}
	c.among.Remove(c.place)
	c.among, c.place = nil, nil
}

// moved notes that a connection has brought a request, or that this is over.
func (l *Listener) moved(c *conn, idle bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.peers == nil {
		return
	}
	if l.pick(c); idle {
		l.put(c, &c.peers.idle)
	}
}

// Close gives the connection's place back.
func (c *conn) Close() error {
	c.listener.mu.Lock()
	c.listener.forget(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// forget is called with mu held, and does nothing the second time.
func (l *Listener) forget(c *conn) {
	p := c.peers
	if p == nil {
		return
	}
	l.pick(c)
	c.peers = nil
	l.total--
	if p.all--; p.all == 0 {
		delete(l.byAddress, p.from)
	}
}

// Connections is how many there are.
func (l *Listener) Connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// address is what a peer is counted by: its IPv4 address, or its IPv6 network, since whoever has one
// address of that has all.
func address(c net.Conn) netip.Prefix { return network(c.RemoteAddr().String()) }

func network(remote string) netip.Prefix {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := at.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 32
	}
	prefix, _ := ip.Prefix(bits) // the zero one has no address, and is shared
	return prefix
}
