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
	HeaderTimeout = 5 * time.Second // TLS handshake, and request header
	ReadTimeout   = 10 * time.Second
	WriteTimeout  = 15 * time.Second
	IdleTimeout   = 60 * time.Second
	MaxHeader     = 16 << 10 // bytes
	MaxStreams    = 100      // concurrent HTTP/2 streams of one connection

	// What an HTTP/2 connection may send before it is read, in bytes: a body, and a few of them.
	streamWindow     = MaxBody
	connectionWindow = 4 * MaxBody
	maxFrame         = 16 << 10
)

// NewServer makes an http.Server with the bounds, for a Listener. connContext may be nil, and so may
// config for a listener without TLS.
func NewServer(h http.Handler, config *tls.Config, connContext func(context.Context, net.Conn) context.Context, log *slog.Logger) *http.Server {
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
				k.listener.known(k)
			}
		},
		ReadHeaderTimeout: HeaderTimeout,
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

// Listener bounds the connections that another listener accepts. One too many is closed at once. Those
// that have not brought a request yet are few, and one more closes the oldest of them: a good client
// needs some milliseconds to get there, and one that is slow on purpose seconds, so that those who come
// to hold places lose them to those who come to work.
type Listener struct {
	net.Listener
	limits  Limits
	refused func(reason string)

	mu        sync.Mutex // guards what follows
	total     int
	byAddress map[netip.Prefix]int
	fresh     list.List // of *conn without a request, the oldest first
}

// Bound makes a Listener with complete limits. refused is told of every connection that is not kept.
func Bound(l net.Listener, limits Limits, refused func(reason string)) *Listener {
	return &Listener{Listener: l, limits: limits, refused: refused, byAddress: map[netip.Prefix]int{}}
}

// conn is a connection that is counted.
type conn struct {
	net.Conn
	listener *Listener
	from     netip.Prefix
	until    time.Time // when it has reached its age

	place  *list.Element // among the fresh; guarded by the listener's mu, as is closed
	closed bool
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
	switch {
	case l.total >= l.limits.Connections:
		c.closed = true // it was not counted
		return refusedTotal, c
	case l.byAddress[c.from] >= l.limits.PerAddress:
		c.closed = true
		return refusedAddress, c
	}
	l.total++
	l.byAddress[c.from]++
	c.place = l.fresh.PushBack(c)
	if l.fresh.Len() <= l.limits.Handshakes {
		return "", nil
	}
	oldest, _ := l.fresh.Front().Value.(*conn)
	return refusedNew, oldest
}

// known takes a connection out of the fresh ones.
func (l *Listener) known(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(c)
}

// settle is called with mu held.
func (l *Listener) settle(c *conn) {
	if c.place != nil {
		l.fresh.Remove(c.place)
		c.place = nil
	}
}

// Close gives the connection's place back.
func (c *conn) Close() error {
	c.listener.leave(c)
	return c.Conn.Close()
}

func (l *Listener) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	l.settle(c)
	l.total--
	if l.byAddress[c.from]--; l.byAddress[c.from] == 0 {
		delete(l.byAddress, c.from)
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
func address(c net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := at.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 32
	}
	network, _ := ip.Prefix(bits) // the zero one has no address, and is shared
	return network
}
