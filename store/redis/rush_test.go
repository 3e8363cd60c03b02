package redis

import (
	"fmt"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redistest"
)

// TestARunAfterARush has more tasks lapse than a run may look at, each of which changes the record of another: every call of
// the run is answered, no run does more than a bounded part, and in the end the quotas are exact.
func TestARunAfterARush(t *testing.T) {
	t.Parallel()
	const lapse, most = 4200, 400
	server := redistest.Start(t)
	s := onServer(t, server, "", slog.DiscardHandler)
	var calls []call
	for range lapse {
		parent, child := begun(broker.NewTaskID(0), ""), begun(broker.NewTaskID(0), "")
		parent.Quota, child.Quota = broker.Quota{}, broker.Quota{}
		child.Begin.Parent, parent.Begin.Lease = parent.Task, time.Hour
		calls = append(calls, s.mustGrantCall(parent), s.mustGrantCall(child))
		if len(calls) >= maxBatch {
			s.send(t.Context(), calls)
			calls = nil
		}
	}
	s.send(t.Context(), calls)
	server.Must("HSET", "errand:{p00}:meta", "last", strconv.FormatInt(time.Now().Add(30*time.Minute).UnixMilli(), 10))
	calls = nil
	for range maxBatch {
		req := begun(broker.NewTaskID(0), "")
		req.Quota = broker.Quota{Tasks: lapse + maxBatch}
		calls = append(calls, s.mustGrantCall(req))
	}
	due := func() int {
		n, err := strconv.Atoi(server.Must("ZCARD", "errand:{p00}:due"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for rounds, before := 0, 0; len(calls) > 0; rounds++ {
		var again []call
		for i, r := range s.send(t.Context(), calls) {
			switch {
			case r.err == nil && r.status == "again":
				again = append(again, calls[i])
			case r.err != nil || r.status != "begun":
				t.Fatalf("round %d: %s, error %v", rounds, r.status, r.err)
			}
		}
		now := due()
		if now-before > most || rounds > lapse {
			t.Fatalf("round %d: %d tasks are due, and %d before", rounds, now, before)
		}
		calls, before = again, now
	}
	want := fmt.Sprintf("%08x", lapse+maxBatch)
	if got := fmt.Sprintf("%x", server.Must("HGET", "errand:{p00}:usage", one.String())); got[:8] != want {
		t.Errorf("so many tasks count: %s; want %s", got[:8], want)
	}
}
