package server_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
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

// TestHeartbeatsNameTheirStream: the answer to the events says what it is called, and with that name alone a heartbeat
// extends a lease that depends on it.
func TestHeartbeatsNameTheirStream(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	id := c.beginAs(presentBody).Task.ID
	old := c.stream(eventsOf(id), "")
	old.next(t, wire.EventBeat)
	stream := c.stream(eventsOf(id), "")
	stream.next(t, wire.EventBeat)
	before := r.lease(id)
	if stream.id == "" || stream.id == old.id || before.Stream != broker.StreamID(stream.id) {
		t.Fatalf("the streams are %q and %q, and the task's %q", old.id, stream.id, before.Stream)
	}
	for name, extends := range map[string]bool{"": false, old.id: false, "str_of_nobody": false, stream.id: true} {
		time.Sleep(5 * time.Millisecond)
		a := c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}],"stream":%q}`, id, name))
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		now := r.lease(id)
		if now.LeaseEnd.After(before.LeaseEnd) != extends {
			t.Errorf("%q: the lease was until %s, and is until %s", name, before.LeaseEnd, now.LeaseEnd)
		}
		before = now
	}
	long := fmt.Sprintf(`{"tasks":[{"id":%q}],"stream":%q}`, id, strings.Repeat("s", broker.MaxStreamID+1))
	a := c.post(wire.PathHeartbeats, long)
	if c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid); a.problem.Field != "stream" {
		t.Errorf("%s", a.body)
	}
}

// TestP6_HeartbeatsAloneExtendNothing: when the replica has sent the client away, the task has a lease for another
// stream to come, however it is beaten at whatever replica.
func TestP6_HeartbeatsAloneExtendNothing(t *testing.T) {
	for name, age := range map[string]time.Duration{"it stops": 0, "the connection is old": httpapi.MinConnectionAge} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := within(t, httpapi.Limits{ConnectionAge: age})
			other := startFederated(t, nil, func(c *server.Config) { c.Store = r.store })
			id := r.client(reportID).beginAs(strings.Replace(presentBody, "{", `{"lease_seconds":6,`, 1)).Task.ID
			stream := r.client(reportID).stream(eventsOf(id), "")
			if stream.next(t, wire.EventBeat); age == 0 {
				r.stop()
			}
			stream.next(t, wire.EventReset)
			r.eventually("the follower has left", func() bool { return r.Broker().Followers() == 0 })
			left := r.lease(id).LeaseEnd
			c := other.client(reportID)
			other.eventually("it has lapsed", func() bool {
				c.post(wire.PathHeartbeats, beat(id))
				return r.lease(id).State != broker.Active
			})
			if got := r.lease(id); got.State != broker.Lapsed || !got.Ended.Equal(left) {
				t.Errorf("it is %s by %s since %s; want it to have lapsed at %s", got.State, got.Cause, got.Ended, left)
			}
		})
	}
}
