package redistest

import (
	"iter"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Fault is what a Proxy does to what passes through it.
type Fault struct {
	// Latency is added to every piece of data, each way, and something between nothing and Jitter.
	Latency, Jitter time.Duration
	// Rate is how many bytes pass in a second, each way; 0 for all.
	Rate int
	// Slice is how many bytes pass at once at most; 0 for all that there are.
	Slice int
	// Silent holds everything back, as a network does that has lost a route: connections stay open,
	// new ones are accepted, and nothing arrives.
	Silent bool
	// Deaf throws the answers away: commands arrive and are done, and nobody hears of it.
	Deaf bool
	// Refuse resets new connections.
	Refuse bool
}

// Proxy is a way to a server.
type Proxy struct {
	listener net.Listener
	all      sync.WaitGroup

	mu      sync.Mutex // guards all below
	target  string
	fault   Fault
	changed chan struct{} // closed and replaced when fault changes
	conns   map[net.Conn]bool
	closed  bool
}

// Between makes a proxy to an address, without a fault. It ends with the test.
func Between(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.all.Go(p.accept)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		_ = l.Close()
		p.Set(Fault{})
		p.Reset()
		p.all.Wait()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL is the same as a store's address.
func (p *Proxy) URL() string { return "redis://" + p.Addr() }

// Set replaces the fault, for open connections too.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
}

// Point sends new connections to another address; those that are open stay where they are.
func (p *Proxy) Point(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Reset breaks all connections with a TCP reset.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		reset(c)
	}
}

func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		if f, _ := p.now(); f.Refuse {
			reset(c)
			continue
		}
		p.all.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) now() (Fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault, p.changed
}

// keep notes a connection, so that it can be reset, and reports whether it is too late for that.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.conns[c] = true
	}
	return !p.closed
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	reset(c)
}

func (p *Proxy) serve(client net.Conn) {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.DialTimeout("tcp", target, time.Second)
	if err != nil {
		reset(client)
		return
	}
	defer p.drop(client)
	defer p.drop(server)
	if !p.keep(client) || !p.keep(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(client, server, false) })
	both.Go(func() { p.pass(server, client, true) })
	both.Wait()
}

// pass copies until one side ends, and then ends the other.
func (p *Proxy) pass(from, to net.Conn, answers bool) {
	defer p.drop(from)
	defer p.drop(to)
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		for piece := range p.pieces(buffer[:n]) {
			if p.suffer(len(piece), answers) {
				continue
			}
			if _, err := to.Write(piece); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) pieces(data []byte) iter.Seq[[]byte] {
	size := len(data)
	if f, _ := p.now(); f.Slice > 0 {
		size = f.Slice
	}
	return slices.Chunk(data, max(1, size))
}

// suffer does what the fault asks for with so many bytes, and reports whether they are lost.
func (p *Proxy) suffer(size int, answers bool) (lost bool) {
	for {
		f, changed := p.now()
		if f.Silent {
			<-changed
			continue
		}
		late := f.Latency
		if f.Jitter > 0 {
			late += rand.N(f.Jitter)
		}
		if f.Rate > 0 {
			late += time.Duration(size) * time.Second / time.Duration(f.Rate)
		}
		time.Sleep(late)
		return f.Deaf && answers
	}
}
