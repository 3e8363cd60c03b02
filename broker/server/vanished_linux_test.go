package server_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redistest"
)

// TestP6_AClientThatVanishesIsFound: nothing comes from it any more, not even that it is gone, while something else
// goes on to send heartbeats in the name of its stream.
func TestP6_AClientThatVanishesIsFound(t *testing.T) {
	t.Parallel()
	r := start(t)
	c := r.client(reportID)
	id := c.beginAs(presentBody).Task.ID
	var line net.Conn
	transport := c.http.Transport.(*http.Transport).Clone() // a connection of its own
	t.Cleanup(transport.CloseIdleConnections)
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		line = conn
		return conn, err
	}
	client := &caller{r: r, base: c.base, http: &http.Client{Transport: transport}} // which is patient
	stream := client.stream(eventsOf(id), "")
	stream.next(t, wire.EventBeat)
	redistest.Cut(t, line)
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
