package sdk_test

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// waits has the fake answer an end that waits after a while, with that.
func (f *fake) waits(t *testing.T, long time.Duration, p *wire.Propagation, status int) (asked *[]int) {
	asked = new([]int)
	f.script[end] = func(w http.ResponseWriter, r *http.Request) {
		calls := f.got(end)
		var req wire.EndRequest
		if err := json.Unmarshal(calls[len(calls)-1].body, &req); err != nil {
			t.Error(err)
		}
		*asked = append(*asked, req.WaitSeconds)
		if req.WaitSeconds == 0 {
			f.answer(w, r)
			return
		}
		time.Sleep(long)
		if status != http.StatusOK {
			refuse(w, status, wire.Problem{Type: "https://broker/problems/overloaded", Title: "Overloaded"})
			return
		}
		id := calls[len(calls)-1].task
		reply(w, http.StatusOK, wire.Receipt{Event: "evt_" + id, Task: id, State: wire.StateCompleted, Durable: true, Propagation: p})
	}
	return asked
}

// TestWaitPropagated: the end goes first and by itself, and then who has heard of it is asked for, for as long as that takes.
func TestWaitPropagated(t *testing.T) {
	refuses := time.Unix(2_000_000_000, 0).UTC()
	late := []wire.PendingVerifier{{ID: "b", Workload: "spiffe://prod/orders", Audience: "orders", RefusesAt: refuses}}
	for name, c := range map[string]struct {
		long       time.Duration
		p          *wire.Propagation
		status     int
		wait       time.Duration
		seconds    int
		propagated bool
		confirmed  int
		pending    int
	}{
		"all":               {8 * time.Second, &wire.Propagation{Confirmed: 3}, 200, 8500 * time.Millisecond, 9, true, 3, 0},
		"one is pending":    {30 * time.Second, &wire.Propagation{Confirmed: 2, Pending: late}, 200, time.Hour, wire.MaxWait, false, 2, 1},
		"none is named":     {0, &wire.Propagation{Confirmed: 2, Others: 3}, 200, time.Second, 1, false, 2, 0},
		"nothing is said":   {0, nil, 200, time.Second, 1, false, 0, 0},
		"the broker cannot": {0, nil, 503, time.Second, 1, false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				task := begin(t, client, spec)
				asked := f.waits(t, c.long, c.p, c.status)
				receipt, err := task.Complete(t.Context(), sdk.WaitPropagated(c.wait))
				if err != nil || receipt.State != sdk.Completed || !receipt.Durable {
					t.Fatalf("the end itself: %+v, %v", receipt, err)
				}
				if receipt.Propagated != c.propagated || receipt.Confirmed != c.confirmed || len(receipt.Pending) != c.pending {
					t.Errorf("got %+v", receipt)
				}
				if c.pending > 0 && receipt.Pending[0] != (sdk.PendingVerifier{ID: "b", Workload: "spiffe://prod/orders", Audience: "orders", RefusesAt: refuses}) {
					t.Errorf("got %+v", receipt.Pending)
				}
				if (*asked)[0] != 0 || (*asked)[1] != c.seconds {
					t.Errorf("it asked to wait for %v seconds", *asked)
				}
			})
		})
	}
}

// TestWaitPropagatedInDo, and not for longer than its caller wants.
func TestWaitPropagatedInDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		asked := f.waits(t, 2*time.Second, &wire.Propagation{Confirmed: 1}, 200)
		waiting := spec
		waiting.WaitPropagated = 5 * time.Second
		began := time.Now()
		if err := client.Do(t.Context(), waiting, func(context.Context, *sdk.Task) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second || len(*asked) != 2 || (*asked)[1] != 5 {
			t.Errorf("it took %s and asked to wait for %v seconds", took, *asked)
		}
		task := begin(t, client, spec)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		receipt, err := task.Complete(ctx, sdk.WaitPropagated(5*time.Second))
		if err != nil || receipt.State != sdk.Completed || receipt.Propagated {
			t.Errorf("a caller who has left: %+v, %v", receipt, err)
		}
	})
}
