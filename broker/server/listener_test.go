package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// addr is where workloads connect to.
func (r *replica) addr() string { return strings.TrimPrefix(r.BrokerURL(), "https://") }

// clientTLS presents an identity's SVID.
func (r *replica) clientTLS(id string) *tls.Config {
	r.t.Helper()
	return &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13, ServerName: "127.0.0.1", Certificates: []tls.Certificate{r.certificate(id)}}
}

// dial is a connection that says nothing by itself, from an address of this machine.
func (r *replica) dial(from string) net.Conn {
	r.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", r.addr())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// ask sends one request on a connection and reads the answer.
func ask(c net.Conn, path string) (*http.Response, error) {
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: errand\r\n\r\n", path); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp, err
}

// open is a connection that has brought a request already, or nil.
func (r *replica) open(from string) *tls.Conn {
	r.t.Helper()
	c := tls.Client(r.dial(from), r.clientTLS(reportID))
	if resp, err := ask(c, wire.PathWhoami); err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	return c
}

// closedWithin waits until the other end has closed a connection.
func closedWithin(t *testing.T, what string, c net.Conn, d time.Duration) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: still open after %s", what, d)
	}
}

// TestConnectionsAreBounded: as many as allowed work, one more is closed, those that were there go on,
// and when one has left there is room again; in all, and for one address. Who has one connection takes the
// place of an idle one of who has all.
func TestConnectionsAreBounded(t *testing.T) {
	for name, limits := range map[string]httpapi.Limits{
		"connections": {Connections: 3, PerAddress: 100, Handshakes: 1},
		"address":     {Connections: 100, PerAddress: 3},
	} {
		t.Run(name, func(t *testing.T) {
			r := within(t, limits)
			var all []*tls.Conn
			for i := range 3 {
				c := r.open("127.0.0.1")
				if c == nil {
					t.Fatalf("connection %d of 3 was refused", i+1)
				}
				all = append(all, c)
			}
			if r.open("127.0.0.1") != nil {
				t.Error("one more was not refused")
			}
			if got := r.metric(fmt.Sprintf(`errand_refused_connections_total{limit=%q,listener="workload"}`, name)); got != "1" {
				t.Errorf("%q refusals were counted", got)
			}
			if r.open("127.0.0.2") == nil {
				t.Error("another address was kept out")
			}
			stay := 3
			if name == "connections" {
				if r.open("127.0.0.3") == nil {
					t.Error("a third address was kept out")
				}
				if stay = 1; r.open("127.0.0.4") != nil {
					t.Error("one was closed for who has as many")
				}
			}
			left := working(all)
			if len(left) != stay {
				t.Fatalf("%d of those that were there work; want %d", len(left), stay)
			}
			left[0].Close()
			r.eventually("there is room again", func() bool { return r.open("127.0.0.1") != nil })
		})
	}
}

// working are the connections on which a request is answered.
func working(all []*tls.Conn) (left []*tls.Conn) {
	for _, c := range all {
		if resp, err := ask(c, wire.PathWhoami); err == nil && resp.StatusCode == http.StatusOK {
			left = append(left, c)
		}
	}
	return left
}

// TestTheLongestIdleConnectionGoesFirst. The broker knows a moment after the client that a request is over, so
// that a pause between them decides who is idle for longest; on a busy machine it takes a longer one.
func TestTheLongestIdleConnectionGoesFirst(t *testing.T) {
	for _, pause := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, 5 * time.Second} {
		r := within(t, httpapi.Limits{Connections: 3})
		var all []*tls.Conn
		for range 3 {
			all = append(all, r.open("127.0.0.1"))
			time.Sleep(pause)
		}
		if r.open("127.0.0.2") == nil {
			t.Fatal("another address was kept out")
		}
		left := working(all)
		if len(left) != 2 {
			t.Fatalf("%d of three are left", len(left))
		}
		if left[0] == all[1] && left[1] == all[2] {
			return
		}
	}
	t.Error("another one than the one that was idle for longest was closed")
}

// TestSilentPeersKeepNobodyOut: whoever only connects loses its place to those who come after it, long
// before its time is over; those that are there, and those that come with a request, notice nothing.
func TestSilentPeersKeepNobodyOut(t *testing.T) {
	const most = 4
	r := within(t, httpapi.Limits{Handshakes: most})
	old := r.open("127.0.0.1")
	var silent []net.Conn
	for range most {
		silent = append(silent, r.dial("127.0.0.1"))
	}
	r.eventually("they are there", func() bool { return r.metric(`errand_connections{listener="workload"}`) == fmt.Sprint(most+1) })
	if got := r.metric(`errand_refused_connections_total{limit="handshakes",listener="workload"}`); got != "" {
		t.Errorf("%s were refused of as many as are allowed", got)
	}
	began := time.Now()
	if r.open("127.0.0.1") == nil {
		t.Error("a good client was kept out")
	}
	closedWithin(t, "the oldest", silent[0], 2*time.Second)
	for range 50 {
		r.dial("127.0.0.1")
	}
	if r.open("127.0.0.1") == nil {
		t.Error("a good client was kept out by more of them")
	}
	for i, c := range silent {
		closedWithin(t, fmt.Sprintf("silent peer %d", i), c, 2*time.Second)
	}
	if took := time.Since(began); took >= httpapi.DefaultHandshakeTime {
		t.Logf("it took %s on this machine, so that the handshake's own end may have closed them", took)
	}
	if resp, err := ask(old, wire.PathWhoami); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a connection of before: %v", err)
	}
}

// TestSilentPeersOfAnotherAddress: a good client that takes its time is not the one that is closed for a
// flood from elsewhere.
func TestSilentPeersOfAnotherAddress(t *testing.T) {
	r := within(t, httpapi.Limits{Handshakes: 4})
	slow := r.dial("127.0.0.2")
	for range 50 {
		r.dial("127.0.0.1")
	}
	c := tls.Client(slow, r.clientTLS(reportID))
	if resp, err := ask(c, wire.PathWhoami); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("it was kept out: %v", err)
	}
}

// TestSlowPeersAreDropped has those who make a replica wait. Each is dropped at the deadline of what it
// is slow with, and good requests work meanwhile.
func TestSlowPeersAreDropped(t *testing.T) {
	t.Parallel()
	r := start(t)
	hello := clientHello(t)
	c := r.client(reportID)
	var all sync.WaitGroup
	for name, slow := range map[string]struct {
		begin func() net.Conn
		drip  string // what comes byte for byte, twice a second
		end   time.Duration
	}{
		"says nothing":       {func() net.Conn { return r.dial("127.0.0.1") }, "", httpapi.DefaultHandshakeTime},
		"ClientHello alone":  {func() net.Conn { c := r.dial("127.0.0.1"); _, _ = c.Write(hello); return c }, "", httpapi.DefaultHandshakeTime},
		"ClientHello drips":  {func() net.Conn { return r.dial("127.0.0.1") }, string(hello), httpapi.DefaultHandshakeTime},
		"no request":         {func() net.Conn { return r.shaken("") }, "", httpapi.DefaultHandshakeTime},
		"headers drip":       {func() net.Conn { return r.shaken("GET /v1/whoami HTTP/1.1\r\nHost: x\r\n") }, "X-Slow: " + strings.Repeat("a", 1000), httpapi.DefaultHandshakeTime},
		"body drips":         {func() net.Conn { return r.shaken(slowBody) }, strings.Repeat(" ", 1000), httpapi.ReadTimeout},
		"body does not come": {func() net.Conn { return r.shaken(slowBody) }, "", httpapi.ReadTimeout},
	} {
		conn := slow.begin()
		all.Go(func() {
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				closedWithin(t, name, conn, slow.end+5*time.Second) // the machine may be busy
			}()
			for _, b := range []byte(slow.drip) {
				select {
				case <-gone:
					return
				case <-time.After(500 * time.Millisecond):
				}
				if _, err := conn.Write([]byte{b}); err != nil {
					break
				}
			}
			<-gone
		})
	}
	for range 20 {
		if a := c.get(wire.PathWhoami); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	all.Wait()
	c.begin()
}

// TestHandshakeTime: a handshake that is done a bit before the time that the limits give it is good, also
// beyond the default, and one that is not is dropped then, and not before.
func TestHandshakeTime(t *testing.T) {
	t.Parallel()
	const limit, below = 8 * time.Second, 6 * time.Second
	r := within(t, httpapi.Limits{HandshakeTime: limit})
	began := time.Now()
	slow := tls.Client(r.dial("127.0.0.1"), r.clientTLS(reportID))
	silent := r.dial("127.0.0.1")
	time.Sleep(below)
	if resp, err := ask(slow, wire.PathWhoami); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a handshake %s after the connection, of %s: %v", below, limit, err)
	}
	closedWithin(t, "a connection that says nothing", silent, limit+10*time.Second) // the machine may be busy
	if took := time.Since(began); took < limit {
		t.Errorf("it was closed after %s of %s", took, limit)
	}
}

const slowBody = "POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2000\r\n\r\n{"

// shaken is a connection whose handshake is done, with the beginning of a request.
func (r *replica) shaken(text string) net.Conn { return r.shakenAs(reportID, text) }

func (r *replica) shakenAs(id, text string) net.Conn {
	r.t.Helper()
	c := tls.Client(r.dial("127.0.0.1"), r.clientTLS(id))
	if err := c.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// position is where the feed of orders is now.
func (r *replica) position() string {
	r.t.Helper()
	var snapshot wire.FeedSnapshot
	r.client(ordersID).get(wire.PathFeedSnapshot+"?aud=orders").into(r.t, &snapshot)
	return snapshot.Position
}

// clientHello is the first message of a good handshake.
func clientHello(t *testing.T) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		_ = tls.Client(theirs, &tls.Config{ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13}).Handshake()
		theirs.Close()
	}()
	hello := make([]byte, 16<<10)
	n, err := ours.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return hello[:n]
}

// TestConnectionAge: connections that have reached their age are closed with an answer and replaced,
// in HTTP/1.1 and HTTP/2, and no request fails for it.
func TestConnectionAge(t *testing.T) {
	r := within(t, httpapi.Limits{ConnectionAge: time.Second})
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("HTTP/%d", version), func(t *testing.T) {
			transport := &http.Transport{TLSClientConfig: r.clientTLS(reportID), ForceAttemptHTTP2: version == 2}
			defer transport.CloseIdleConnections()
			c := &caller{r: r, base: r.BrokerURL(), http: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
			used := map[string]int{}
			trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { used[i.Conn.LocalAddr().String()]++ }}
			requests := 0
			r.eventually("three connections were used", func() bool {
				a := c.send("GET", wire.PathWhoami, "", func(req *http.Request) {
					*req = *req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
				})
				if a.status != http.StatusOK {
					t.Fatalf("%d %s", a.status, a.body)
				}
				requests++
				return len(used) >= 3
			})
			if requests < 9 { // each was used again, also where a request takes long
				t.Errorf("three connections for %d requests", requests)
			}
		})
	}
}

// TestConnectionAgeIsNoticedByNobody: while every connection is closed after a second, no call of the
// SDK fails and no end escapes a verifier, whose streams are told to begin anew.
func TestConnectionAgeIsNoticedByNobody(t *testing.T) {
	t.Parallel()
	r := within(t, httpapi.Limits{ConnectionAge: time.Second})
	v := r.verifier()
	feed := r.shakenAs(ordersID, "GET /v1/feed?aud=orders HTTP/1.1\r\nHost: x\r\nLast-Event-ID: "+r.position()+"\r\n\r\n")
	reset := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(feed)
		reset <- string(text)
	}()
	who := r.source(reportID)
	client, err := sdk.New(t.Context(), sdk.WithBroker(r.BrokerURL()), sdk.WithBrokerID(spiffeid.RequireFromString(brokerID)), sdk.WithIdentity(sdk.FromSource(who, who)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(t.Context())
	c, peer := r.bearer(reportID)
	for until := time.Now().Add(8 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		err := client.Do(t.Context(), sdk.TaskSpec{Name: "n", Purpose: "p"}, func(ctx context.Context, task *sdk.Task) error {
			_, err := task.Token(ctx, sdk.TokenRequest{Audience: "orders"})
			return err
		})
		if err != nil {
			t.Fatalf("the SDK: %v", err)
		}
		begun := c.begin()
		token := begun.Tokens[0].AccessToken
		if _, err := v.Verify(t.Context(), token, peer); err != nil {
			t.Fatalf("a live token: %v", err)
		}
		c.end(begun.Task.ID, "completed")
		r.eventually("the verifier has heard of the end", func() bool {
			_, err := v.Verify(t.Context(), token, peer)
			return err != nil
		})
	}
	select {
	case text := <-reset:
		if !strings.Contains(text, "Connection: close") || !strings.Contains(text, "event: reset\n") {
			t.Errorf("a stream ended with %q", text)
		}
	case <-time.After(10 * time.Second):
		t.Error("a stream goes on on a connection that has reached its age")
	}
}
