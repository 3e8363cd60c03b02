package redis_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	goredis "github.com/redis/go-redis/v9"

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
	b.Share = 10
	storetest.Run(t, b)
	storetest.Board(t, b)
	storetest.Aging(t, b)
	storetest.Races(t, b)
	storetest.Machine(t, b)
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
	t.Run("every primary is looked at", func(t *testing.T) {
		for _, node := range nodes {
			node.Must("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
			_, err := redis.New(t.Context(), redis.Config{URL: url}.Patient())
			node.Must("CONFIG", "SET", "maxmemory-policy", "noeviction")
			if err == nil || !strings.Contains(err.Error(), "noeviction") {
				t.Errorf("with a node that evicts: %v; want a refusal", err)
			}
		}
	})
	t.Run("permissions are tried in every shard", func(t *testing.T) {
		for _, node := range nodes {
			node.Must("ACL", "SETUSER", "errand", "on", ">hunter2", "~*", "&*", "+@all")
		}
		as := strings.Replace(url, "://", "://errand:hunter2@", 1)
		for _, node := range nodes {
			node.Must("ACL", "SETUSER", "errand", "-zrem")
			_, err := redis.New(t.Context(), redis.Config{URL: as}.Patient())
			node.Must("ACL", "SETUSER", "errand", "+zrem")
			if err == nil || !strings.Contains(err.Error(), "may not use zrem") {
				t.Errorf("with a node that refuses a command: %v; want a refusal", err)
			}
		}
	})
	t.Run("a node forgets the scripts while another one hangs", func(t *testing.T) {
		store := open(t, redis.Config{URL: url, Prefix: "hangs:"})
		slot, err := strconv.Atoi(nodes[0].Must("CLUSTER", "KEYSLOT", "{p00}"))
		if err != nil {
			t.Fatal(err)
		}
		here := slot * len(nodes) / 16384
		eventually(t, "a look-up at the node that has forgotten", func() bool {
			nodes[here].Must("SCRIPT", "FLUSH")
			hangs := nodes[(here+1)%len(nodes)]
			hangs.Pause()
			defer hangs.Resume()
			_, err := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(0)})
			return errors.Is(err, broker.ErrNotFound)
		})
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

// TestClusterSendsOnce has a way to each node that goes silent when a script passes: nothing is sent a second time, since the
// first may have been done.
func TestClusterSendsOnce(t *testing.T) {
	t.Parallel()
	const reason = "how often is this sent"
	nodes := redistest.StartCluster(t)
	var sent atomic.Int32
	var ports []string
	for _, node := range nodes {
		address := between(t, node.Addr(), func() func([]byte) ([]byte, bool) {
			silent := false
			return func(piece []byte) ([]byte, bool) {
				n := bytes.Count(piece, []byte(reason))
				sent.Add(int32(n))
				silent = silent || n > 0
				return nil, !silent
			}
		})
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		node.Must("CONFIG", "SET", "cluster-announce-port", port)
		ports = append(ports, port)
	}
	asked := goredis.NewClient(&goredis.Options{Addr: nodes[0].Addr()})
	t.Cleanup(func() { _ = asked.Close() })
	eventually(t, "the nodes know the way to each other", func() bool {
		shards, err := asked.ClusterShards(t.Context()).Result()
		return err == nil && len(shards) == len(nodes) && !slices.ContainsFunc(shards, func(s goredis.ClusterShard) bool {
			return !slices.Contains(ports, fmt.Sprint(s.Nodes[0].Port))
		})
	})
	patient := open(t, redis.Config{URL: redistest.ClusterURL(nodes)}.Patient())
	store := open(t, redis.Config{URL: redistest.ClusterURL(nodes)})
	var ends []broker.Ending
	for shard := range redis.ClusterShards {
		reply, err := patient.Grant(t.Context(), in(shard))
		if err != nil {
			t.Fatal(err)
		}
		e := completing(reply.Task.ID)
		e.Reason = reason
		ends = append(ends, e)
	}
	for _, ends := range [][]broker.Ending{ends[:1], ends[1:]} { // by itself, and in pipelines
		sent.Store(0)
		if _, err := store.End(t.Context(), ends); !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("End of %d: %v; want ErrUnconfirmed", len(ends), err)
		}
		if n := sent.Load(); n != int32(len(ends)) {
			t.Errorf("%d ends were sent %d times", len(ends), n)
		}
	}
}
