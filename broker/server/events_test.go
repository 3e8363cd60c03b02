package server_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

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
