//go:build unix

package exec

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// Bounds of the endpoint.
const (
	maxConnections  = 64
	maxHeaderBytes  = 8 << 10
	endpointTimeout = 20 * time.Second // for one answer; a token may take the SDK 10 s
	readTimeout     = 5 * time.Second
	tokenPath       = "/token"
)

// endpoint answers the command's own requests for tokens, on loopback.
type endpoint struct {
	task   *sdk.Task
	asks   []Ask
	ttl    time.Duration
	secret string

	listener net.Listener
	server   *http.Server
	served   chan struct{}
}

// newEndpoint listens. Its owner closes it.
func newEndpoint(task *sdk.Task, asks []Ask, ttl time.Duration) (*endpoint, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := &endpoint{
		task: task, asks: asks, ttl: ttl, secret: rand.Text() + rand.Text(), served: make(chan struct{}),
		listener: &limited{Listener: listener},
	}
	e.server = &http.Server{
		Handler: e, ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, WriteTimeout: endpointTimeout, IdleTimeout: endpointTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, placedKey{}, c) },
	}
	go func() {
		defer close(e.served)
		_ = e.server.Serve(e.listener) // ends by close alone
	}()
	return e, nil
}

func (e *endpoint) url() string { return "http://" + e.listener.Addr().String() + tokenPath }

func (e *endpoint) close() error {
	err := e.server.Close()
	<-e.served
	return err
}

// ServeHTTP answers GET /token?audience=A&scope=S. Who asks has the secret, which a web page that was
// rebound to this address has not; it has not the right Host either.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case r.Host != e.listener.Addr().String():
		refuse(w, http.StatusMisdirectedRequest, "Another host", "ask "+e.url()+" by that name")
	case !e.admits(r):
		w.Header().Set("Connection", "close")
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, http.StatusUnauthorized, "Not authorized", "send  Authorization: Bearer  and the value of "+EnvTokenAuth)
	case r.URL.Path != tokenPath:
		refuse(w, http.StatusNotFound, "Not found", "there is only "+tokenPath)
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "Method not allowed", "use GET")
	default:
		e.answer(w, r)
	}
}

// admits compares in a time that says nothing about the secret, its length included.
func (e *endpoint) admits(r *http.Request) bool {
	got, want := sha256.Sum256([]byte(r.Header.Get("Authorization"))), sha256.Sum256([]byte("Bearer "+e.secret))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return false
	}
	if conn, ok := r.Context().Value(placedKey{}).(*placed); ok {
		conn.settle()
	}
	return true
}

// tokenAnswer is RFC 6749's, as the broker answers.
type tokenAnswer struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`
	Audience    string `json:"audience"`
	GrantID     string `json:"grant_id"`
}

func (e *endpoint) answer(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	ask := sdk.TokenRequest{Audience: query.Get("audience"), Scopes: strings.Fields(strings.Join(query["scope"], " ")), TTL: e.ttl}
	if ask.Audience == "" && len(e.asks) == 1 {
		ask.Audience = e.asks[0].Audience
	}
	if len(ask.Scopes) == 0 {
		for _, known := range e.asks {
			if known.Audience == ask.Audience {
				ask.Scopes = known.Scopes
			}
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), endpointTimeout)
	defer cancel()
	token, err := e.task.Token(ctx, ask)
	if err != nil {
		refuseToken(w, err)
		return
	}
	w.Header().Set("Content-Type", wire.TypeJSON)
	_ = json.NewEncoder(w).Encode(tokenAnswer{
		AccessToken: token.Secret(), TokenType: "Bearer", ExpiresIn: int64(time.Until(token.Expires) / time.Second),
		Scope: strings.Join(token.Scopes, " "), Audience: token.Audience, GrantID: token.GrantID,
	})
}

// refuseToken passes the broker's answer on.
func refuseToken(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	var e *sdk.Error
	switch {
	case errors.Is(err, sdk.ErrTaskEnded), errors.Is(err, sdk.ErrAdopted):
		status = http.StatusGone
	case errors.Is(err, sdk.ErrInvalid):
		status = http.StatusBadRequest
	case errors.As(err, &e) && e.Status >= 400:
		status = e.Status
	}
	refuse(w, status, "No token", err.Error())
}

func refuse(w http.ResponseWriter, status int, title, detail string) {
	w.Header().Set("Content-Type", wire.TypeProblem)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(wire.Problem{Type: "about:blank", Title: title, Status: status, Detail: detail})
}

// limited is a listener with so many connections at once. Any user of this machine can connect, so one
// more closes the oldest of those that have not shown the secret.
type limited struct {
	net.Listener

	mu  sync.Mutex
	all []*placed // the oldest first
}

type placedKey struct{}

// placed is a connection that is counted.
type placed struct {
	net.Conn
	of      *limited
	settled bool // it has shown the secret; guarded by mu
}

// Accept closes a connection that finds no place, rather than keep it waiting.
func (l *limited) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn := &placed{Conn: raw, of: l}
		drop := l.take(conn)
		if drop != nil {
			_ = drop.Conn.Close()
		}
		if drop != conn {
			return conn, nil
		}
	}
}

// take counts a connection, and returns the one to close, if there is one.
func (l *limited) take(conn *placed) (drop *placed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) >= maxConnections {
		i := slices.IndexFunc(l.all, func(p *placed) bool { return !p.settled })
		if i < 0 {
			return conn
		}
		drop = l.all[i]
		l.all = slices.Delete(l.all, i, i+1)
	}
	l.all = append(l.all, conn)
	return drop
}

func (l *limited) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// settle notes that a connection has shown the secret.
func (p *placed) settle() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.settled = true
}

// Close gives the place back. It may be called again.
func (p *placed) Close() error {
	p.of.mu.Lock()
	if i := slices.Index(p.of.all, p); i >= 0 {
		p.of.all = slices.Delete(p.of.all, i, i+1)
	}
	p.of.mu.Unlock()
	return p.Conn.Close()
}
