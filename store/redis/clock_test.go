package redis_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/storetest"
)

// A shard's time never goes behind what it has written down, so a test that writes down a later time
// than the server's has a clock that stands still, and moves it by hand: an hour passes at once, and
// no test is too slow for its leases.

// ahead is how far a test's clock is in front of the server's.
const ahead = 24 * time.Hour

// data is a data set whose clock a test moves.
type data struct {
	*redis.Store
	server   goredis.UniversalClient
	metas    []string // the keys of the shards' clocks
	watching atomic.Int32
}

// freeze takes over the clock of a data set.
func freeze(t testing.TB, store *redis.Store, url, prefix string, shards int) *data {
	t.Helper()
	d := &data{Store: store, server: dial(t, url)}
	for shard := range shards {
		d.metas = append(d.metas, fmt.Sprintf("%s{p%02d}:meta", prefix, shard))
	}
	now, err := d.server.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, meta := range d.metas {
		if err := d.server.HSet(t.Context(), meta, "last", now.Add(ahead).UnixMilli()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// dial makes a client for what a store would never do.
func dial(t testing.TB, url string) goredis.UniversalClient {
	t.Helper()
	var client goredis.UniversalClient
	if plain, ok := strings.CutPrefix(url, "redis+cluster://"); ok {
		client = goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: []string{plain}})
	} else {
		options, err := goredis.ParseURL(url)
		if err != nil {
			t.Fatal(err)
		}
		client = goredis.NewClient(options)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// Watch counts who is watching.
func (d *data) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	d.watching.Add(1)
	defer d.watching.Add(-1)
	return d.Store.Watch(ctx, from, emit)
}

// longWait is the most that a watcher is waited for. It beats in real time.
const longWait = 10 * broker.WatchInterval

// advance lets time pass. Who watches gets as much of it for real as it may need.
func (d *data) advance(by time.Duration) error {
	_, err := d.server.Pipelined(context.Background(), func(p goredis.Pipeliner) error {
		for _, meta := range d.metas {
			p.HIncrBy(context.Background(), meta, "last", by.Milliseconds())
		}
		return nil
	})
	if d.watching.Load() > 0 && by <= longWait {
		time.Sleep(by)
	}
	return err
}

// backend gives each case a data set of its own on one server, by its prefix.
func backend(url string, shards ...int) storetest.Backend {
	return backendFor(redis.Config{URL: url}, url, "test", shards...)
}

// backendFor is the same for a store that is told more. admin is the address for what it would never do.
func backendFor(c redis.Config, admin, prefix string, shards ...int) storetest.Backend {
	var mu sync.Mutex
	var current *data // of the running case; they run one after the other
	made := 0
	return storetest.Backend{
		New: func(t testing.TB, shards int) broker.Store {
			mu.Lock()
			defer mu.Unlock()
			made++
			c := c.Patient()
			c.Prefix, c.Shards = fmt.Sprintf("%s%d:", prefix, made), shards
			current = freeze(t, open(t, c), admin, c.Prefix, shards)
			return current
		},
		Shards: shards,
		In:     func(t *testing.T, f func(t *testing.T)) { f(t) },
		Advance: func(by time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if err := current.advance(by); err != nil {
				panic(err)
			}
		},
	}
}

// TestStore runs the whole suite with one shard, and with several.
func TestStore(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 4} {
		s := start(t)
		b := backend(s.URL(), shards)
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			t.Parallel()
			if shards == 1 {
				declared(t, s, 11) // all of them but the one of records
			}
			storetest.Run(t, b)
			storetest.Board(t, b)
			storetest.Aging(t, b)
		})
	}
}

func TestStoreRaces(t *testing.T) {
	t.Parallel()
	storetest.Races(t, backend(start(t).URL(), 1))
}

// TestStoreMachine compares random calls with the model that store/memory is compared with.
func TestStoreMachine(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 4} {
		b := backend(start(t).URL(), shards)
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			t.Parallel()
			storetest.Machine(t, b)
		})
	}
}

// TestP7_OneWriteEndsALargeTree: 20 000 tasks, since building it is what takes long, a round trip for each.
// The bench has one of 100 000.
func TestP7_OneWriteEndsALargeTree(t *testing.T) {
	t.Parallel()
	storetest.Tree(t, backend(start(t).URL(), 1), 20_000)
}

// TestNothingLengthensALife: the server's clock is not a test's to set back; TestTimeThatEndedSomethingIsKept has what
// becomes of that.
func TestNothingLengthensALife(t *testing.T) {
	t.Parallel()
	storetest.Lives(t, backend(start(t).URL(), 1), nil)
}
