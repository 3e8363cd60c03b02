package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
	"github.com/errandhq/errand/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend runs each case in a bubble: its hours pass at once.
func backend() storetest.Backend {
	return storetest.Backend{
		New: func(t testing.TB, shards int) broker.Store {
			store, err := memory.New(memory.Config{Shards: shards})
			if err != nil {
				t.Fatal(err)
			}
			return store
		},
		Shards:  []int{1, 4},
		In:      synctest.Test,
		Advance: time.Sleep,
	}
}

func TestStore(t *testing.T) { storetest.Run(t, backend()) }

func TestStoreBoard(t *testing.T) { storetest.Board(t, backend()) }

func TestStoreAging(t *testing.T) { storetest.Aging(t, backend()) }

func TestStoreRaces(t *testing.T) { storetest.Races(t, backend()) }

func TestStoreMachine(t *testing.T) { storetest.Machine(t, backend()) }

// TestP7_OneWriteEndsALargeTree: 100 000 tasks.
func TestP7_OneWriteEndsALargeTree(t *testing.T) { storetest.Tree(t, backend(), 100_000) }

// TestNothingLengthensALife, nor does a clock that is set.
func TestNothingLengthensALife(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	move := func(d time.Duration) { now = now.Add(d) }
	b := backend()
	b.In, b.Advance = func(t *testing.T, f func(t *testing.T)) { f(t) }, move
	b.New = func(t testing.TB, shards int) broker.Store {
		store, err := memory.New(memory.Config{Shards: shards, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	storetest.Lives(t, b, move)
}
