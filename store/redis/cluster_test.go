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
	url := redistest.ClusterURL(redistest.StartCluster(t))
	storetest.Run(t, backend(url, redis.ClusterShards))
	t.Run("default number of shards", func(t *testing.T) {
		store := open(t, redis.Config{URL: url})
		if _, err := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(redis.ClusterShards - 1)}); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("Lookup in the last shard: %v; want ErrNotFound", err)
		}
		update, err := first(t.Context(), store, broker.Position{})
		if err != nil || len(update.Position.Numbers) != redis.ClusterShards {
			t.Errorf("got %+v, error %v; want %d shards", update.Position, err, redis.ClusterShards)
		}
	})
}
