package server_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/sdk/wire"
)

func eventsOf(ids ...string) string { return wire.PathEvents + "?" + url.Values{"task": ids}.Encode() }

// TestEvents: a workload hears how its task has ended, and nothing of somebody else's.
func TestEvents(t *testing.T) {
	r := start(t)
	c, night := r.client(reportID), r.client("spiffe://prod/night")
	mine, theirs := c.begin().Task.ID, night.begin().Task.ID
	stream := c.stream(eventsOf(mine, theirs), "")
	told := func(want wire.TaskEnded) {
		t.Helper()
		var got wire.TaskEnded
		if stream.into(t, wire.EventTaskEnded, &got); got != want {
			t.Errorf("told %+v; want %+v", got, want)
		}
	}
	told(wire.TaskEnded{ID: theirs, State: wire.StateUnknown})
	stream.next(t, wire.EventBeat)
	if _, err := r.Broker().Revoke(t.Context(), broker.Revocation{Task: broker.TaskID(mine), Actor: "alice", Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	told(wire.TaskEnded{ID: mine, State: wire.StateRevoked, Cause: "operator"})
	r.stop()
	stream.next(t, wire.EventReset)
}

// TestEventsRefuses what cannot be followed.
func TestEventsRefuses(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	id := c.begin().Task.ID
	many := strings.Split(strings.Repeat(id+" ", wire.MaxFollowed)+id, " ")
	c.refused(c.get(eventsOf(many...)), http.StatusUnprocessableEntity, wire.ProblemInvalid)
	c.refused(c.get(eventsOf()), http.StatusUnprocessableEntity, wire.ProblemInvalid)
	c.refused(c.get(eventsOf("tsk_1")), http.StatusUnprocessableEntity, wire.ProblemInvalid)
	c.refused(c.send("GET", eventsOf(id), "{}", nil), http.StatusBadRequest, wire.ProblemMalformed)
	c.stream(eventsOf(many[1:]...), "").next(t, wire.EventBeat)
}

// TestEventsTakeNoPlace: more streams than there are places for requests, and requests still are answered.
func TestEventsTakeNoPlace(t *testing.T) {
	r := within(t, httpapi.Limits{Issuing: 1, Others: 1})
	c := r.client(reportID)
	id := c.begin().Task.ID
	for range 3 {
		c.stream(eventsOf(id), "").next(t, wire.EventBeat)
	}
	if n := r.metric(`errand_requests_at_work{kind="other"}`); n != "0" {
		t.Errorf("the streams have %q places", n)
	}
	if a := c.end(id, "completed"); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestEventsEndWithTheAgeOfTheConnection, and with a word to connect again.
func TestEventsEndWithTheAgeOfTheConnection(t *testing.T) {
	r := within(t, httpapi.Limits{ConnectionAge: httpapi.MinConnectionAge})
	c := r.client(reportID)
	c.stream(eventsOf(c.begin().Task.ID), "").next(t, wire.EventReset)
	r.eventually("the follower has left", func() bool { return r.Broker().Followers() == 0 })
}

const presentBody = `{"name":"payout","purpose":"FIN-212","tokens":[{"audience":"orders"}],"presence":true}`

// lease is when the lease of a task ends, by the store, whether or not the replica still answers.
func (r *replica) lease(id string) broker.Task {
	r.t.Helper()
	record, err := r.store.Lookup(context.Background(), broker.Ref{Task: broker.TaskID(id)})
	if err != nil {
		r.t.Fatal(err)
	}
	return record.Task
}

// TestP6_TheStreamIsTheConnection: closing it ends the task within two seconds.
func TestP6_TheStreamIsTheConnection(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	id := c.beginAs(presentBody).Task.ID
	stream := c.stream(eventsOf(id), "")
	stream.next(t, wire.EventBeat)
	lost := time.Now()
	stream.Close()
	r.eventually("it has lapsed", func() bool { return r.lease(id).State == broker.Lapsed })
	if got := r.lease(id); got.Cause != broker.CausePresence || got.Ended.Sub(lost) > 2*time.Second {
		t.Errorf("by %s, %s after the loss", got.Cause, got.Ended.Sub(lost))
	}
}

// TestP6_AReplicaThatSendsItsClientsAwayEndsNothing: neither when it stops, nor when a connection is old.
func TestP6_AReplicaThatSendsItsClientsAwayEndsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		limits httpapi.Limits
		stops  bool
	}{"stops": {httpapi.Limits{}, true}, "age": {httpapi.Limits{ConnectionAge: httpapi.MinConnectionAge}, false}} {
		t.Run(name, func(t *testing.T) {
			r := within(t, c.limits)
			caller := r.client(reportID)
			id := caller.beginAs(presentBody).Task.ID
			stream := caller.stream(eventsOf(id), "")
			stream.next(t, wire.EventBeat)
			before := r.lease(id)
			if c.stops {
				r.stop()
			}
			stream.next(t, wire.EventReset)
			stream.Close()
			r.eventually("the follower has left", func() bool { return r.Broker().Followers() == 0 })
			if got := r.lease(id); got.Stream != before.Stream || !got.LeaseEnd.Equal(before.LeaseEnd) {
				t.Errorf("got %+v; want the lease until %s", got, before.LeaseEnd)
			}
		})
	}
}
