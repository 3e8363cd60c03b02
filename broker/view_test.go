package broker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
)

// renewedStore has a new data set that cannot be read for a while, when lost is set.
type renewedStore struct {
	broker.Store
	lost atomic.Bool
}

func (s *renewedStore) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	if s.lost.Load() {
		return broker.ErrUnavailable
	}
	return s.Store.Watch(ctx, from, func(u broker.Update) error {
		if s.lost.Load() {
			return broker.ErrEpoch
		}
		return emit(u)
	})
}

// TestNothingIsDecidedOnTheControlListOfALostDataSet: the versions of the new one's may be lower, so
// that the store would take an old list for a newer one, and issue past a lock.
func TestNothingIsDecidedOnTheControlListOfALostDataSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &renewedStore{Store: newFaulty(t).Store}
		h := newHarness(t, store, nil)
		task := h.begin(report, nil).Task
		store.lost.Store(true)
		time.Sleep(time.Second)
		_, err := h.Issue(ctx, workload(report), task.ID, broker.TokenRequest{Audience: "orders"})
		want(t, err, broker.ErrNotReady)
		_, err = h.tryBegin(report, nil)
		want(t, err, broker.ErrNotReady)
		want(t, h.Ready(), broker.ErrNotReady)
		store.lost.Store(false)
		time.Sleep(time.Second)
		h.issue(report, task.ID)
		h.begin(report, nil)
	})
}
