package verify

import (
	"bufio"
	"context"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"sync"
	"time"
)

// watched is the answer to a request that runs on the strength of a grant. When its context has ended for
// the grant's sake, nothing more of it is sent: a write that waits for the client returns, and every later
// one fails, both with the cause. Most handlers look at no context while they write.
type watched struct {
	http.ResponseWriter
	ctx    context.Context
	first  http.Header // what was set before the handler ran
	unhook func() bool

	mu    sync.Mutex // guards all below
	sent  bool       // the status is out, or about to be
	taken net.Conn   // by Hijack
	over  bool       // the handler has returned; the writer is not ours any more
}

func watch(ctx context.Context, w http.ResponseWriter) *watched {
	one := &watched{ResponseWriter: w, ctx: ctx, first: maps.Clone(w.Header())}
	one.unhook = context.AfterFunc(ctx, one.cut)
	return one
}

// died is why the context has ended, if that is for the grant's sake.
func (w *watched) died() error {
	switch cause := context.Cause(w.ctx); cause {
	case ErrRevoked, ErrExpired, ErrStale:
		return cause
	}
	return nil
}

// cut ends a write that waits. While nothing was sent none can, and the connection is still good for a
// refusal.
func (w *watched) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.over || w.died() == nil:
	case w.taken != nil:
		_ = w.taken.Close()
	case w.sent:
		// A writer that knows no deadline is left with failing at the next write.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(longAgo)
	}
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// finish gives the writer back when the handler has returned. The cause is nil if the handler was in time,
// or has taken the connection. It can be called again.
func (w *watched) finish() (cause error, sent bool) {
	w.unhook()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.taken != nil {
		return nil, true
	}
	return w.died(), w.sent
}

// begin must be called before something is sent.
func (w *watched) begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cause := w.died(); cause != nil {
		return cause
	}
	w.sent = true
	return nil
}

// why is the cause where the grant's end has made a write fail.
func (w *watched) why(err error) error {
	if cause := w.died(); err != nil && cause != nil {
		return cause
	}
	return err
}

func (w *watched) WriteHeader(status int) {
	if status < http.StatusOK && status != http.StatusSwitchingProtocols {
		// The real one is still to come.
		if w.died() == nil {
			w.ResponseWriter.WriteHeader(status)
		}
		return
	}
	if w.begin() == nil {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *watched) Write(b []byte) (int, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	n, err := w.ResponseWriter.Write(b)
	return n, w.why(err)
}

// maxPiece bounds what a ReadFrom hands to the kernel at once: a client that is fast enough is never
// waited for, so that no deadline would stop it.
const maxPiece = 1 << 20

// ReadFrom keeps the short way from a file to a connection.
func (w *watched) ReadFrom(src io.Reader) (n int64, err error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	// The kernel's way is for a file, or a LimitedReader of one; not for one of another.
	left, ok := src.(*io.LimitedReader)
	if !ok {
		left = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	for left.N > 0 {
		if err := w.begin(); err != nil {
			return n, err
		}
		piece := &io.LimitedReader{R: left.R, N: min(left.N, maxPiece)}
		want := piece.N
		got, err := to.ReadFrom(piece)
		n += got
		left.N -= want - piece.N
		if err != nil || piece.N > 0 {
			return n, w.why(err)
		}
	}
	return n, nil
}

// Flush is for handlers that look for http.Flusher.
func (w *watched) Flush() { _ = w.FlushError() }

func (w *watched) FlushError() error {
	if err := w.begin(); err != nil {
		return err
	}
	return w.why(http.NewResponseController(w.ResponseWriter).Flush())
}

// Hijack gives the connection to the handler, as for a WebSocket. It is closed when the grant dies while
// the handler runs.
func (w *watched) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if cause := w.died(); cause != nil {
		return nil, nil, cause
	}
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	w.taken = conn
	w.mu.Unlock()
	w.cut() // it may have ended since
	return conn, rw, nil
}

// SetWriteDeadline keeps a handler from lifting the one that has passed.
func (w *watched) SetWriteDeadline(at time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cause := w.died(); cause != nil {
		return cause
	}
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at)
}

// Unwrap is for http.ResponseController.
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }
