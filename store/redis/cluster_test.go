package redis_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/storetest"
)

// startCluster starts a Redis Cluster of three primaries, and returns its URL.
func startCluster(t *testing.T) string {
	t.Helper()
	const nodes, slots = 3, 16384
	var servers []*server
	var ports []int
	for i := range nodes {
		bus := freePort(t)
		s := start(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", fmt.Sprint(bus),
			"--cluster-node-timeout", "2000")
		servers, ports = append(servers, s), append(ports, bus)
		must(t, s, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
		must(t, s, "CLUSTER", "ADDSLOTSRANGE", i*slots/nodes, (i+1)*slots/nodes-1)
	}
	for i, s := range servers[1:] {
		must(t, servers[0], "CLUSTER", "MEET", "127.0.0.1", s.port, ports[i+1])
	}
	for _, s := range servers {
		c := s.direct()
		eventually(t, "the cluster is whole", func() bool {
			text, err := c.ClusterInfo(t.Context()).Result()
			return err == nil && strings.Contains(text, "cluster_state:ok") && strings.Contains(text, "cluster_known_nodes:3") &&
				strings.Contains(text, "cluster_size:3")
		})
	}
	return fmt.Sprintf("redis+cluster://127.0.0.1:%d", servers[1].port)
}

func must(t *testing.T, s *server, command ...any) {
	t.Helper()
	if err := s.direct().Do(t.Context(), command...).Err(); err != nil {
		t.Fatalf("%v: %v", command, err)
	}
}

// TestCluster runs the suite on a real cluster, where each script must stay in one slot.
func TestCluster(t *testing.T) {
	t.Parallel()
	url := startCluster(t)
	storetest.Run(t, backend(url, redis.ClusterShards))
	t.Run("default number of shards", func(t *testing.T) {
		store, err := redis.New(t.Context(), redis.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = store.Close() }()
		if _, err := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(redis.ClusterShards - 1)}); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("Lookup in the last shard: %v; want ErrNotFound", err)
		}
		update, err := first(t.Context(), store, broker.Position{})
		if err != nil || len(update.Position.Numbers) != redis.ClusterShards {
			t.Errorf("got %+v, error %v; want %d shards", update.Position, err, redis.ClusterShards)
		}
	})
}
