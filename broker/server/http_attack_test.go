package server_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/sdk/wire"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is an HTTP/2 connection whose client says what it likes.
type frames struct {
	*http2.Framer
	conn net.Conn
	head []byte // the header block of a good request
}

func (r *replica) frames() *frames {
	r.t.Helper()
	config := r.clientTLS(reportID)
	config.NextProtos = []string{"h2"}
	conn := tls.Client(r.dial("127.0.0.1"), config)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		r.t.Fatal(err)
	}
	f := &frames{http2.NewFramer(conn, conn), conn, nil}
	if err := f.WriteSettings(); err != nil {
		r.t.Fatal(err)
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", wire.PathWhoami}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			r.t.Fatal(err)
		}
	}
	f.head = block.Bytes()
	return f
}

// drain reads what the other end says, so that nobody waits for us, until it closes.
func (f *frames) drain() <-chan struct{} {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, f.conn)
	}()
	return closed
}

// TestHTTP2Floods has what has taken HTTP/2 servers down. Each ends with its connection being closed, or
// with no more work than the bounds of a good one; good requests of others work meanwhile and after it.
func TestHTTP2Floods(t *testing.T) {
	r := start(t)
	c := r.client("spiffe://prod/night")
	for name, flood := range map[string]struct {
		send   func(f *frames, i int) error
		closed bool // the connection must be
	}{
		"rapid reset": {func(f *frames, i int) error {
			id := uint32(2*i + 1)
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.head, EndStream: true, EndHeaders: true}); err != nil {
				return err
			}
			return f.WriteRSTStream(id, http2.ErrCodeCancel)
		}, false},
		"CONTINUATION": {func(f *frames, i int) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.head})
			}
			return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x00, 0x01, 'a', 0x01, 'b'}, 200))
		}, true},
		"SETTINGS": {func(f *frames, _ int) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
		}, false},
		"PING": {func(f *frames, _ int) error { return f.WritePing(false, [8]byte{}) }, false},
		"streams that stay": {func(f *frames, i int) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: f.head, EndHeaders: true})
		}, false},
		"frames larger than ok": {func(f *frames, _ int) error { return f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := r.frames()
			closed := f.drain()
			if err := f.conn.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			var err error
			for i := 0; i < 10_000 && err == nil; i++ {
				if err = flood.send(f, i); i%2000 == 0 {
					if a := c.get(wire.PathWhoami); a.status != http.StatusOK {
						t.Errorf("another workload meanwhile: %d %s", a.status, a.body)
					}
				}
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Log("the server read no more of it") // that bounds it, too
			}
			if flood.closed {
				select {
				case <-closed:
				case <-time.After(httpapi.ReadTimeout + 5*time.Second):
					t.Error("the connection is still open")
				}
			}
			f.conn.Close()
			<-closed
			c.begin()
		})
	}
}

// TestZeroWindow: an HTTP/2 client that takes no answer is given up, and holds nobody up.
func TestZeroWindow(t *testing.T) {
	t.Parallel()
	r := start(t)
	f := r.frames()
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	for i := range httpapi.MaxStreams {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: f.head, EndStream: true, EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.conn.SetReadDeadline(time.Now().Add(httpapi.WriteTimeout + 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	c := r.client("spiffe://prod/night")
	for range 20 {
		c.end(c.begin().Task.ID, "completed")
	}
	resets := 0
	for resets < httpapi.MaxStreams {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Logf("after %d resets: %v", resets, err) // the connection is gone, and all with it
			break
		}
		if _, ok := frame.(*http2.RSTStreamFrame); ok {
			resets++
		}
	}
	r.eventually("nothing is being worked on", func() bool { return r.metric(`errand_requests_at_work{kind="other"}`) == "0" })
}

// TestPipelining: a thousand requests at once on one connection are answered one after another.
func TestPipelining(t *testing.T) {
	r := start(t)
	c := tls.Client(r.dial("127.0.0.1"), r.clientTLS(reportID))
	const n = 1000
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, strings.Repeat("GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n", n-1)+"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		sent <- err
	}()
	text, err := io.ReadAll(c)
	if got := bytes.Count(text, []byte("HTTP/1.1 200 OK\r\n")); got != n || err != nil || <-sent != nil {
		t.Errorf("%d answers of %d, %v", got, n, err)
	}
}

// TestBadHTTP has requests that are malformed below HTTP's own rules. None is worked on, each ends its
// connection, and a good one works after it.
func TestBadHTTP(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	good := "POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	body := `{"name":"n","purpose":"p"}`
	for name, text := range map[string]string{
		"two lengths":                good + fmt.Sprintf("Content-Length: %d\r\nContent-Length: 5\r\n\r\n%s", len(body), body),
		"negative length":            good + "Content-Length: -1\r\n\r\n" + body,
		"length and chunks":          good + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"bad chunk size":             good + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body + "\r\n0\r\n\r\n",
		"chunk extensions":           good + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 1<<20) + "\r\n{\r\n0\r\n\r\n",
		"no host":                    "GET /v1/whoami HTTP/1.1\r\n\r\n",
		"two hosts":                  "GET /v1/whoami HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"HTTP/0.9":                   "GET /v1/whoami\r\n\r\n",
		"HTTP/9.9":                   "GET /v1/whoami HTTP/9.9\r\nHost: x\r\n\r\n",
		"NUL in the path":            "GET /v1/who\x00ami HTTP/1.1\r\nHost: x\r\n\r\n",
		"space before the colon":     "GET /v1/whoami HTTP/1.1\r\nHost : x\r\n\r\n",
		"a header that goes on":      "GET /v1/whoami HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
		"64 KiB of header":           "GET /v1/whoami HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n",
		"10 000 headers":             "GET /v1/whoami HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 10_000) + "\r\n",
		"a query of 1 MiB":           "GET /v1/whoami?" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT":                    "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n",
		"a body that is not awaited": good + "Expect: 200-maybe\r\nContent-Length: 5\r\n\r\n",
		"smuggled":                   good + "Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.shaken("")
			go func() { _, _ = io.WriteString(conn, text) }()
			if err := conn.SetReadDeadline(time.Now().Add(httpapi.ReadTimeout + 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 64)
			n, _ := io.ReadFull(conn, answer)
			if status := string(answer[:n]); n > 0 && !strings.HasPrefix(status, "HTTP/1.1 4") && !strings.HasPrefix(status, "HTTP/1.0 4") && !strings.HasPrefix(status, "HTTP/1.1 505") {
				t.Errorf("answered with %q", status)
			}
			if a := c.get(wire.PathWhoami); a.status != http.StatusOK {
				t.Errorf("a good request after it: %d", a.status)
			}
		})
	}
	if got := r.metric("errand_tasks_begun_total"); got != "0" {
		t.Errorf("%s tasks were begun", got)
	}
}
