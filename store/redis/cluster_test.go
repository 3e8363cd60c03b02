package redis_test

import (
	"errors"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
	"github.com/errandhq/errand/store/storetest"
)

// TestCluster runs the suite on a real cluster of three, where each script must stay in one slot.
func TestCluster(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t)
	url := redistest.ClusterURL(nodes)
	b := backend(url, redis.ClusterShards)
	storetest.Run(t, b)
	storetest.Board(t, b)
	t.Run("default number of shards", func(t *testing.T) {
		store := open(t, redis.Config{URL: url}.Patient())
		if _, err := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(redis.ClusterShards - 1)}); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("Lookup in the last shard: %v; want ErrNotFound", err)
		}
		update, err := first(t.Context(), store, broker.Position{})
		if err != nil || len(update.Position.Numbers) != redis.ClusterShards {
			t.Errorf("got %+v, error %v; want %d shards", update.Position, err, redis.ClusterShards)
		}
	})
	t.Run("a node forgets the scripts", func(t *testing.T) {
		store := open(t, redis.Config{URL: url, Prefix: "forgets:"}.Patient())
		var ends []broker.Ending
		for shard := range redis.ClusterShards {
			reply, err := store.Grant(t.Context(), in(shard))
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, completing(reply.Task.ID))
		}
		if _, err := store.End(t.Context(), ends[:1]); err != nil { // so that the nodes know the script
			t.Fatal(err)
		}
		nodes[1].Must("SCRIPT", "FLUSH")
		replies, err := store.End(t.Context(), ends[1:])
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range replies {
			if !r.Receipt.First {
				t.Errorf("%+v; want a first end: nothing that was done is sent again", r.Receipt)
			}
		}
	})
}
