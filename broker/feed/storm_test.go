package feed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/sdk/wire"
)

// TestAThousandReadersComeBackAtOnce: each from where it was when a replica sent all of them away, while ends go
// on. None misses one, and none keeps the announcing waiting.
func TestAThousandReadersComeBackAtOnce(t *testing.T) {
	const readers, before, after = 1000, 20, 20
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		for n := range uint64(before) {
			announce(f, position(n+1), entry(0, n+1, "orders"))
		}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		heard := make([]map[uint64]bool, readers)
		for i := range readers {
			from := uint64(i % (before + 1)) // how far it was
			heard[i] = map[uint64]bool{}
			for n := range from {
				heard[i][n+1] = true
			}
			all.Go(func() {
				at := wire.Position{Epoch: epoch, Numbers: []uint64{from}}
				err := f.Follow(ctx, fmt.Sprintf("spiffe://prod/orders-%d", i/feed.DefaultPerServer), "orders", at, func(d feed.Delivery) error {
					var e wire.FeedEvent
					if err := json.Unmarshal(d.Data, &e); err != nil {
						return err
					}
					for _, entry := range e.Entries {
						heard[i][entry.Number] = true
					}
					return nil
				})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("reader %d: %v", i, err)
				}
			})
		}
		for n := uint64(before); n < before+after; n++ {
			announce(f, position(n+1), entry(0, n+1, "orders"))
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		cancel()
		all.Wait()
		for i := range heard {
			if len(heard[i]) != before+after {
				t.Fatalf("reader %d has heard %d of %d", i, len(heard[i]), before+after)
			}
		}
	})
}
