package server_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// TestP5_RedisStandsStillForLongerThanALease: tasks whose lease has passed when it goes on were dead from their last heartbeat
// and their lease on, to the millisecond; the first look-up that is answered says so, and so does the feed within a second.
// What was ended meanwhile is, and what has a longer lease goes on.
func TestP5_RedisStandsStillForLongerThanALease(t *testing.T) {
	t.Parallel()
	o := startOutage(t, breakages["Redis paused"](t), verify.MinMaxStale)
	const short = `{"name":"export","purpose":"FIN-212","lease_seconds":5,"tokens":[{"audience":"orders"}]}`
	var lapsing []wire.BeginResponse
	for range 5 {
		lapsing = append(lapsing, o.c.beginAs(short))
	}
	if a := o.c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}]}`, lapsing[0].Task.ID)); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	due := map[string]time.Time{}
	last := time.Time{}
	for _, begun := range lapsing {
		var task wire.Task
		if o.c.get(taskPath(begun.Task.ID, "")).into(t, &task); task.State != wire.StateActive || o.verify(begun) != nil {
			t.Fatalf("%+v before the standstill", task)
		}
		due[task.ID] = task.LeaseExpiresAt
		if task.LeaseExpiresAt.After(last) {
			last = task.LeaseExpiresAt
		}
	}
	if !due[lapsing[0].Task.ID].After(lapsing[0].Task.LeaseExpiresAt) {
		t.Fatal("a heartbeat has extended nothing")
	}
	o.fail()
	told := o.receipt(o.c.endWith(o.ending.Task.ID, o.ending.EndKey), http.StatusAccepted)
	time.Sleep(time.Until(last.Add(2 * time.Second)))
	for _, begun := range lapsing {
		if err := o.verify(begun); !errors.Is(err, verify.ErrStale) {
			t.Errorf("a verifier that has heard nothing for longer than its bound: %v", err)
		}
	}
	o.mend()
	back := time.Now()
	o.deadAt(due, lapsing)
	o.announced(due, back)
	for _, begun := range lapsing {
		if err := o.verify(begun); !errors.Is(err, verify.ErrRevoked) {
			o.eventually("the verifier refuses it", func() bool { return errors.Is(o.verify(begun), verify.ErrRevoked) })
		}
	}
	o.eventually("the end is durable", func() bool { return o.c.end(o.ending.Task.ID, "failed").status == http.StatusOK })
	if durable := o.receipt(o.c.end(o.ending.Task.ID, "failed"), http.StatusOK); durable.Event != told.Event {
		t.Errorf("the end is %+v; it was answered with %+v", durable, told)
	}
	o.eventually("what has a longer lease goes on", func() bool { return o.verify(o.going) == nil })
}

// deadAt wants the first answer about each task and token to be that it has been dead since its lease was over.
func (o *outage) deadAt(due map[string]time.Time, lapsing []wire.BeginResponse) {
	o.t.Helper()
	for _, begun := range lapsing {
		var a answer
		id := begun.Task.ID
		o.eventually("a task is answered for", func() bool { a = o.c.get(taskPath(id, "")); return a.status != http.StatusServiceUnavailable })
		var task wire.Task
		if a.into(o.t, &task); task.State != wire.StateLapsed || task.EndedAt == nil || !task.EndedAt.Equal(due[id]) {
			o.t.Errorf("the task is %s since %v, and its lease was over at %s", task.State, task.EndedAt, due[id])
		}
		o.eventually("a grant is answered for", func() bool {
			a = o.c.get(wire.PathGrants + "/" + begun.Tokens[0].GrantID)
			return a.status != http.StatusServiceUnavailable
		})
		var grant wire.Grant
		if a.into(o.t, &grant); a.status != http.StatusOK || grant.Live {
			o.t.Errorf("a token of it: %d %s", a.status, a.body)
		}
	}
}

// announced wants the feed and the audit log to have each lapse within a second.
func (o *outage) announced(due map[string]time.Time, back time.Time) {
	o.t.Helper()
	o.eventually("the lapses are on the feed", func() bool {
		var s wire.FeedSnapshot
		o.client(ordersID).get(wire.PathFeedSnapshot+"?aud=orders").into(o.t, &s)
		found := 0
		for _, e := range s.Entries {
			if _, ok := due[e.ID]; ok {
				found++
			}
		}
		return found == len(due)
	})
	took := time.Since(back)
	if took > busy(time.Second) {
		o.t.Errorf("the lapses were announced %s after Redis went on", took)
	}
	o.t.Logf("announced after %s", took)
	for id, at := range due {
		lapse := func() (lines []string) {
			for line := range strings.Lines(o.auditLog()) {
				if strings.Contains(line, `"kind":"task.ended"`) && strings.Contains(line, `"task":"`+id+`"`) {
					lines = append(lines, line)
				}
			}
			return lines
		}
		o.eventually("the audit log has it", func() bool { return len(lapse()) > 0 })
		text := at.UTC().Format(time.RFC3339Nano)
		if lines := lapse(); len(lines) != 1 || !strings.Contains(lines[0], `"state":"lapsed"`) || !strings.Contains(lines[0], text) {
			o.t.Errorf("of a task whose lease was over at %s: %s", text, lines)
		}
	}
}
