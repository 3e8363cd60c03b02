package verify_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

const (
	mebi    = 1 << 20
	tooMuch = 64 * mebi // more than the buffers between a server and its client hold
	patient = time.Minute
)

// open serves the handler to whoever has a token, over HTTP/1.1, with TLS, or over HTTP/2.
func open(tb testing.TB, v *verify.Verifier, protocol string, handler http.Handler) (url string, client *http.Client) {
	tb.Helper()
	server := httptest.NewUnstartedServer(v.Require("orders:read")(handler))
	switch protocol {
	case "plain":
		server.Start()
	case "TLS":
		server.StartTLS()
	case "HTTP/2":
		server.EnableHTTP2 = true
		server.StartTLS()
	}
	tb.Cleanup(server.Close)
	return server.URL, server.Client()
}

func unbound(c *verify.Config) { c.Binding = verify.Unbound }

// sparse is a file of that many zeroes.
func sparse(tb testing.TB, size int64) *os.File {
	tb.Helper()
	f := must(os.Create(tb.TempDir() + "/big"))(tb)
	tb.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	return f
}

// revoke revokes the grant of b.token, and waits until the verifier knows.
func revoke(tb testing.TB, v *verify.Verifier, b *broker) {
	tb.Helper()
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	settled(tb, v, b)
}

// TestP1_DownloadEnds: the handlers look at no context, and wait for a client that reads no more.
func TestP1_DownloadEnds(t *testing.T) {
	handlers := map[string]func(http.ResponseWriter, *http.Request, *os.File) error{
		"ServeContent": func(w http.ResponseWriter, r *http.Request, f *os.File) error {
			http.ServeContent(w, r, "big", time.Time{}, f)
			return verify.ErrRevoked // it tells nobody
		},
		"io.Copy": func(w http.ResponseWriter, _ *http.Request, f *os.File) error {
			_, err := io.Copy(w, f)
			return err
		},
		"Write": func(w http.ResponseWriter, _ *http.Request, _ *os.File) error {
			for some := make([]byte, 8<<10); ; {
				if _, err := w.Write(some); err != nil {
					return err
				}
			}
		},
		"Flush": func(w http.ResponseWriter, _ *http.Request, _ *os.File) error {
			for {
				_, _ = w.Write(make([]byte, 1<<10))
				if err := http.NewResponseController(w).Flush(); err != nil {
					return err
				}
			}
		},
	}
	for _, protocol := range []string{"plain", "TLS", "HTTP/2"} {
		for name, handler := range handlers {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				t.Parallel()
				b := newBroker(t, 1)
				v := b.verifier(unbound)
				f, returned := sparse(t, tooMuch), make(chan error, 1)
				url, client := open(t, v, protocol, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					returned <- handler(w, r, f)
				}))
				response := call(t, client, url, "Bearer "+b.token(nil))
				if _, err := io.CopyN(io.Discard, response.Body, mebi); err != nil || response.StatusCode != http.StatusOK {
					t.Fatal(response.Status, err)
				}
				revoke(t, v, b)
				select {
				case err := <-returned:
					if err != verify.ErrRevoked {
						t.Errorf("the handler got %v", err)
					}
				case <-time.After(patient):
					t.Error("the handler still waits for its client")
				}
				if n, err := io.Copy(io.Discard, response.Body); err == nil || n > tooMuch/2 {
					t.Errorf("the client got %d more bytes, and then %v", n, err)
				}
			})
		}
	}
}

// TestP1_EventsEnd: a stream of events breaks, although its handler ends it in good order.
func TestP1_EventsEnd(t *testing.T) {
	for _, protocol := range []string{"TLS", "HTTP/2"} {
		t.Run(protocol, func(t *testing.T) {
			b := newBroker(t, 1)
			v := b.verifier(unbound)
			url, client := open(t, v, protocol, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				flusher, ok := w.(http.Flusher)
				if !ok {
					t.Error("it cannot flush")
					return
				}
				for r.Context().Err() == nil {
					fmt.Fprint(w, "data: hello\n\n")
					flusher.Flush()
					select {
					case <-r.Context().Done():
					case <-time.After(time.Millisecond):
					}
				}
			}))
			events := bufio.NewReader(call(t, client, url, "Bearer "+b.token(nil)).Body)
			for range 4 {
				if line, err := events.ReadString('\n'); err != nil || line != "data: hello\n" && line != "\n" {
					t.Fatalf("%q, %v", line, err)
				}
			}
			revoke(t, v, b)
			if _, err := io.Copy(io.Discard, events); err == nil {
				t.Error("for the client the stream is complete")
			}
		})
	}
}

// fast is a writer that never waits for a client, and knows no deadline.
type fast struct {
	*httptest.ResponseRecorder
	pieces int
}

func (f *fast) ReadFrom(src io.Reader) (int64, error) {
	f.pieces++
	return io.Copy(f.ResponseRecorder.Body, src)
}

// long revokes the grant as it is read for the first time.
type long struct {
	end  func()
	read int64
}

func (l *long) Read(p []byte) (int, error) {
	switch {
	case l.read == 0:
		l.end()
	case l.read >= tooMuch:
		return 0, io.EOF
	}
	l.read += int64(len(p))
	return len(p), nil
}

// TestP1_NothingIsWrittenAfterwards, where no deadline can stop it.
func TestP1_NothingIsWrittenAfterwards(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(unbound)
	w := &fast{ResponseRecorder: httptest.NewRecorder()}
	handler := v.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		src := &long{end: func() {
			revoke(t, v, b)
			<-r.Context().Done()
		}}
		if _, err := io.Copy(w, src); err != verify.ErrRevoked || src.read > 2*mebi {
			t.Errorf("a copy ended after %d bytes with %v", src.read, err)
		}
		if n, err := w.Write([]byte("more")); n != 0 || err != verify.ErrRevoked {
			t.Errorf("Write: %d, %v", n, err)
		}
		control := http.NewResponseController(w)
		if err := control.Flush(); err != verify.ErrRevoked {
			t.Errorf("Flush: %v", err)
		}
		if err := control.SetWriteDeadline(time.Now().Add(patient)); err != verify.ErrRevoked {
			t.Errorf("SetWriteDeadline: %v", err)
		}
		if _, _, err := control.Hijack(); err != verify.ErrRevoked {
			t.Errorf("Hijack: %v", err)
		}
	}))
	defer func() {
		if got := recover(); got != http.ErrAbortHandler || w.pieces != 1 || w.Flushed {
			t.Errorf("recovered %v after %d pieces, flushed %t", got, w.pieces, w.Flushed)
		}
	}()
	handler.ServeHTTP(w, must(withToken("https://orders/", b.token(nil)))(t))
}

// TestRefusedWhileNothingWasSent: an answer that comes too late is a refusal, on a connection that is as
// good as before.
func TestRefusedWhileNothingWasSent(t *testing.T) {
	for _, protocol := range []string{"plain", "HTTP/2"} {
		t.Run(protocol, func(t *testing.T) {
			b := newBroker(t, 1)
			refused := make(chan string, 1)
			v := b.verifier(func(c *verify.Config) {
				unbound(c)
				c.Hooks.OnRefuse = func(_ context.Context, reason string, g *verify.Grant) { refused <- reason + " " + g.ID }
			})
			url, client := open(t, v, protocol, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if g, _ := verify.FromContext(r.Context()); g.ID != grantID {
					return
				}
				w.WriteHeader(http.StatusEarlyHints)
				w.Header().Set("Content-Length", "3")
				w.Header().Set("ETag", `"x"`)
				revoke(t, v, b)
				<-r.Context().Done()
				w.WriteHeader(http.StatusCreated)
				if _, err := io.WriteString(w, "two"); err != verify.ErrRevoked {
					t.Errorf("the handler got %v", err)
				}
			}))
			response := call(t, client, url, "Bearer "+b.token(nil))
			body := must(io.ReadAll(response.Body))(t)
			if response.StatusCode != http.StatusUnauthorized || !strings.Contains(response.Header.Get("WWW-Authenticate"), `error_description="revoked"`) ||
				response.Header.Get("ETag") != "" || !bytes.Contains(body, []byte(`"detail":"revoked"`)) {
				t.Errorf("%s %v\n%s", response.Status, response.Header, body)
			}
			if got := <-refused; got != "revoked "+grantID {
				t.Errorf("the hook was told %q", got)
			}
			again(t, b, client, url)
		})
	}
}

// again makes a request with another grant, over the same connection as the one before it.
func again(tb testing.TB, b *broker, client *http.Client, url string) {
	tb.Helper()
	request := must(withToken(url, b.token(func(c map[string]any) { c["jti"] = "gnt_00dddddddddddddddddddddddddd" })))(tb)
	var reused bool
	request = request.WithContext(httptrace.WithClientTrace(request.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
	}))
	response := must(client.Do(request))(tb)
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK || !reused {
		tb.Errorf("the next request: %s, %v, over the same connection: %t", response.Status, err, reused)
	}
}

// TestAnswersUnharmed: what is answered in time is whole, and so is its connection when the grant dies
// later.
func TestAnswersUnharmed(t *testing.T) {
	for _, protocol := range []string{"plain", "TLS", "HTTP/2"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			v := b.verifier(unbound)
			f := sparse(t, 5*mebi)
			if _, err := f.WriteAt([]byte("end"), 5*mebi-3); err != nil {
				t.Fatal(err)
			}
			url, client := open(t, v, protocol, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patient)); err != nil {
					t.Errorf("a deadline of the handler's own: %v", err)
				}
				http.ServeContent(w, r, "big", time.Time{}, f)
			}))
			for spec, size := range map[string]int{"": 5 * mebi, "bytes=1000-": 5*mebi - 1000, "bytes=-3": 3} {
				request := must(withToken(url, b.token(nil)))(t)
				request.Header.Set("Range", spec)
				response := must(client.Do(request))(t)
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if err != nil || len(body) != size || response.ContentLength != int64(size) || !bytes.HasSuffix(body, []byte("end")) {
					t.Errorf("%q: %d bytes of %d, %v", spec, len(body), size, err)
				}
			}
			revoke(t, v, b)
			again(t, b, client, url)
		})
	}
}

// TestHijackedConnectionEnds: what has taken the connection reads and writes past everybody.
func TestHijackedConnectionEnds(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(unbound)
	returned := make(chan error, 1)
	url, client := open(t, v, "plain", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			returned <- err
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\nhello")
		_ = rw.Flush()
		_, err = rw.ReadByte()
		returned <- err
	}))
	response := call(t, client, url, "Bearer "+b.token(nil))
	hello := make([]byte, 5)
	if _, err := io.ReadFull(response.Body, hello); err != nil || string(hello) != "hello" {
		t.Fatalf("%s, %q, %v", response.Status, hello, err)
	}
	revoke(t, v, b)
	select {
	case err := <-returned:
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("its read ended with %v", err)
		}
	case <-time.After(patient):
		t.Fatal("it still reads")
	}
	if _, err := response.Body.Read(hello); err == nil {
		t.Error("the client is still connected")
	}
}
