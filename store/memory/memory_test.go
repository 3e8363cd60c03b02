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

func TestStoreAging(t *testing.T) { storetest.Aging(t, backend()) }

func TestStoreMachine(t *testing.T) { storetest.Machine(t, backend()) }
