package server_test

import (
	"net/http"
	"sync"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// TestHeartbeatsComeAllAtOnce, as after an outage, from many clients, each for as many tasks as one request may
// have: all of them are answered, or told when to come again, and ends go on meanwhile.
func TestHeartbeatsComeAllAtOnce(t *testing.T) {
	const clients, rounds = 24, 3
	r := startFederated(t, nil, func(c *server.Config) {
		c.Limits = httpapi.Limits{Rate: httpapi.MaxRate, Burst: httpapi.MaxRate}
	})
	tasks := make([]string, broker.MaxHeartbeat)
	c := r.client(reportID)
	mine := c.begin()
	for i := range tasks {
		tasks[i] = string(broker.NewTaskID(0)) // most are gone by now
	}
	tasks[0] = mine.Task.ID
	body := beat(tasks...)
	var all sync.WaitGroup
	for range clients {
		client := r.client(reportID)
		all.Go(func() {
			for range rounds {
				a := client.post(wire.PathHeartbeats, body)
				switch {
				case a.status == http.StatusServiceUnavailable && a.header.Get("Retry-After") != "":
				case a.status != http.StatusOK:
					t.Errorf("%d %s", a.status, a.body)
				default:
					var pulses wire.HeartbeatResponse
					if a.into(t, &pulses); pulses.Tasks[0].State != wire.StateActive || pulses.Tasks[1].State != wire.StateUnknown {
						t.Errorf("got %+v", pulses.Tasks[:2])
					}
				}
			}
		})
	}
	for range 10 {
		if id := c.begin().Task.ID; c.end(id, "completed").status != http.StatusOK {
			t.Errorf("%s cannot be ended", id)
		}
	}
	all.Wait()
	if a := c.end(mine.Task.ID, "completed"); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}
