package server_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/sdk/wire"
)

// cut has the kernel drop whatever comes to a connection, before it could acknowledge it: so it is for the peer as
// with a cable that is cut.
func cut(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0} // of the packet is kept
	filter := unix.SockFprog{Len: 1, Filter: &nothing}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter)
	})
	if err != nil || refused != nil {
		t.Fatal(err, refused)
	}
}

// TestP6_AClientThatVanishesIsFound: nothing comes from it any more, not even that it is gone, while something else
// goes on to send heartbeats in the name of its stream.
func TestP6_AClientThatVanishesIsFound(t *testing.T) {
	t.Parallel()
	r := start(t)
	c := r.client(reportID)
	id := c.beginAs(presentBody).Task.ID
	var line *net.TCPConn
	transport := c.http.Transport.(*http.Transport).Clone() // a connection of its own
	t.Cleanup(transport.CloseIdleConnections)
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		line, _ = conn.(*net.TCPConn)
		return conn, err
	}
	client := &caller{r: r, base: c.base, http: &http.Client{Transport: transport}} // which is patient
	stream := client.stream(eventsOf(id), "")
	stream.next(t, wire.EventBeat)
	cut(t, line)
	lost := time.Now()
	r.eventually("it has lapsed", func() bool {
		c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}],"stream":%q}`, id, stream.id))
		time.Sleep(200 * time.Millisecond)
		return r.lease(id).State != broker.Active
	})
	got := r.lease(id)
	if took := got.Ended.Sub(lost); got.State != broker.Lapsed || got.Cause != broker.CausePresence || took > httpapi.UserTimeout+busy(2*time.Second) {
		t.Errorf("%s by %s, %s after the loss", got.State, got.Cause, took)
	} else if took < httpapi.UserTimeout/2 {
		t.Errorf("it was found after %s: somebody has told", took)
	}
}
