package feed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/sdk/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const epoch = 7

func position(numbers ...uint64) broker.Position {
	return broker.Position{Epoch: epoch, Numbers: numbers}
}

func entry(shard int, number uint64, audiences ...string) broker.Entry {
	return broker.Entry{
		Shard: shard, Number: number, Audiences: audiences, Until: time.Now().Add(time.Minute),
		Denial: broker.Denial{Kind: broker.DenyTask, Task: broker.TaskID(fmt.Sprintf("tsk_%d_%d", shard, number))},
	}
}

func announce(f *feed.Feed, p broker.Position, entries ...broker.Entry) {
	f.Announce(broker.Update{Position: p, Entries: entries, Now: time.Now()})
}

// follower collects what a Follow emits.
type follower struct {
	got  chan feed.Delivery
	done chan error
}

func follow(ctx context.Context, f *feed.Feed, audience, from string) *follower {
	at, err := wire.ParsePosition(from)
	if err != nil {
		panic(err)
	}
	out := &follower{got: make(chan feed.Delivery, 1000), done: make(chan error, 1)}
	go func() {
		out.done <- f.Follow(ctx, "spiffe://prod/orders", audience, at, func(d feed.Delivery) error { out.got <- d; return nil })
	}()
	return out
}

func (f *follower) next(t *testing.T) (feed.Delivery, wire.FeedEvent) {
	t.Helper()
	d := <-f.got
	var e wire.FeedEvent
	if err := json.Unmarshal(d.Data, &e); err != nil {
		t.Fatal(err)
	}
	if e.Position != d.ID {
		t.Errorf("position %q under the id %q", e.Position, d.ID)
	}
	return d, e
}

func TestNothingBeforeTheFirstUpdate(t *testing.T) {
	f := feed.New(feed.Config{})
	if _, err := f.Snapshot("orders"); !errors.Is(err, broker.ErrNotReady) {
		t.Error(err)
	}
	if _, err := f.Position("n"); !errors.Is(err, broker.ErrNotReady) {
		t.Error(err)
	}
	if err := f.Follow(t.Context(), "spiffe://prod/orders", "orders", wire.Position{Epoch: epoch, Numbers: []uint64{0}}, nil); !errors.Is(err, broker.ErrNotReady) {
		t.Error(err)
	}
}

func TestSnapshotIsFilteredAndWhole(t *testing.T) {
	f := feed.New(feed.Config{})
	everybody := entry(1, 1)
	everybody.Audiences = nil
	announce(f, position(2, 1), entry(0, 1, "orders"), entry(0, 2, "files"), everybody)
	s, err := f.Snapshot("orders")
	if err != nil {
		t.Fatal(err)
	}
	if s.Position != "7.2.1" || len(s.Entries) != 2 || s.Entries[0].ID != "tsk_0_1" || s.Entries[1].ID != "tsk_1_1" {
		t.Errorf("got %+v", s)
	}
	if s, _ := f.Snapshot("nobody"); len(s.Entries) != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestFollowFromAnyPositionHasNoGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f := feed.New(feed.Config{})
		announce(f, position(3, 0), entry(0, 1, "orders"), entry(0, 2, "files"), entry(0, 3, "orders"))
		r := follow(ctx, f, "orders", "7.1.0")
		if d, e := r.next(t); d.Event != wire.EventDenials || d.ID != "7.3.0" || len(e.Entries) != 1 || e.Entries[0].Number != 3 {
			t.Errorf("first: %+v %+v", d, e)
		}
		announce(f, position(4, 0), entry(0, 4, "orders"))
		if d, e := r.next(t); d.ID != "7.4.0" || len(e.Entries) != 1 || e.Entries[0].Number != 4 {
			t.Errorf("second: %+v %+v", d, e)
		}
		// What is for others moves the position all the same, soon.
		start := time.Now()
		announce(f, position(5, 0), entry(0, 5, "files"))
		if d, e := r.next(t); d.Event != wire.EventBeat || d.ID != "7.5.0" || len(e.Entries) != 0 || time.Since(start) > feed.PositionInterval {
			t.Errorf("third after %s: %+v %+v", time.Since(start), d, e)
		}
	})
}

func TestBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f := feed.New(feed.Config{})
		announce(f, position(0))
		r := follow(ctx, f, "orders", "7.0")
		r.next(t)
		for range 5 {
			start := time.Now()
			if d, _ := r.next(t); d.Event != wire.EventBeat || time.Since(start) > feed.BeatInterval {
				t.Errorf("%s after %s", d.Event, time.Since(start))
			}
		}
	})
}

func TestForeignPositionsAreRefused(t *testing.T) {
	f := feed.New(feed.Config{})
	announce(f, position(3, 3))
	for from, want := range map[string]error{
		"6.3.3":   feed.ErrCursor, // another epoch
		"7.3":     feed.ErrCursor, // another number of shards
		"7.3.3.0": feed.ErrCursor,
		"7.4.3":   broker.ErrNotReady, // another replica is further: wait
	} {
		at, err := wire.ParsePosition(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Follow(t.Context(), "spiffe://prod/orders", "orders", at, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", from, err, want)
		}
	}
}

func TestANewEpochResetsReadersAndForgetsTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		announce(f, position(1), entry(0, 1, "orders"))
		r := follow(t.Context(), f, "orders", "7.0")
		r.next(t)
		f.Announce(broker.Update{Position: broker.Position{Epoch: epoch + 1, Numbers: []uint64{0}}, Now: time.Now()})
		if err := <-r.done; !errors.Is(err, feed.ErrReset) {
			t.Error(err)
		}
		if s, _ := f.Snapshot("orders"); s.Position != "8.0" || len(s.Entries) != 0 {
			t.Errorf("got %+v", s)
		}
	})
}

func TestASlowReaderIsDroppedAndTheOthersAreNotDisturbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f := feed.New(feed.Config{Buffer: 4})
		announce(f, position(0))
		stuck := make(chan struct{})
		slow := make(chan error, 1)
		at, _ := wire.ParsePosition("7.0")
		go func() {
			slow <- f.Follow(ctx, "spiffe://prod/orders", "orders", at, func(feed.Delivery) error { <-stuck; return nil })
		}()
		quick := follow(ctx, f, "orders", "7.0")
		quick.next(t)
		synctest.Wait()
		for n := uint64(1); n <= 6; n++ {
			announce(f, position(n), entry(0, n, "orders"))
			if _, e := quick.next(t); len(e.Entries) != 1 || e.Entries[0].Number != n {
				t.Errorf("the quick one got %+v as number %d", e, n)
			}
			synctest.Wait()
		}
		close(stuck)
		if err := <-slow; !errors.Is(err, feed.ErrSlow) {
			t.Errorf("the slow one: %v", err)
		}
		if n := f.Readers(); n != 1 {
			t.Errorf("%d readers", n)
		}
	})
}

func TestReadersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := feed.New(feed.Config{MaxReaders: 2})
		announce(f, position(0))
		a, b := follow(ctx, f, "orders", "7.0"), follow(ctx, f, "orders", "7.0")
		a.next(t)
		b.next(t)
		c := follow(ctx, f, "orders", "7.0")
		if err := <-c.done; !errors.Is(err, feed.ErrFull) {
			t.Error(err)
		}
		cancel()
		if err := <-a.done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		<-b.done
		if n := f.Readers(); n != 0 {
			t.Errorf("%d readers are left", n)
		}
	})
}

func TestCloseSendsReadersElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		announce(f, position(0))
		r := follow(t.Context(), f, "orders", "7.0")
		r.next(t)
		f.Close()
		if err := <-r.done; !errors.Is(err, feed.ErrReset) {
			t.Error(err)
		}
		if err := f.Follow(t.Context(), "spiffe://prod/orders", "orders", wire.Position{Epoch: epoch, Numbers: []uint64{0}}, nil); !errors.Is(err, feed.ErrReset) {
			t.Error(err)
		}
	})
}

func TestEntriesGoWhenTheyCanKillNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		announce(f, position(1), entry(0, 1, "orders"))
		time.Sleep(time.Minute - time.Millisecond)
		announce(f, position(1))
		if n := f.Entries(); n != 1 {
			t.Errorf("%d entries before their time", n)
		}
		time.Sleep(2 * time.Second)
		announce(f, position(1))
		if n := f.Entries(); n != 0 {
			t.Errorf("%d entries after their time", n)
		}
	})
}

func TestPositionTellsItsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		f.Announce(broker.Update{Position: position(3), Age: 40 * time.Millisecond, Now: time.Now()})
		time.Sleep(10 * time.Millisecond)
		p, err := f.Position("abc")
		if err != nil || p.Nonce != "abc" || p.Position != "7.3" || p.AgeMS != 50 {
			t.Errorf("got %+v, %v", p, err)
		}
	})
}

// TestADroppedReaderIsToldNoPositionAnyMore: it lacks what came after, and would resume behind it.
func TestADroppedReaderIsToldNoPositionAnyMore(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			f := feed.New(feed.Config{Buffer: 1})
			announce(f, position(0))
			at, _ := wire.ParsePosition("7.0")
			var last wire.Position
			err := f.Follow(t.Context(), "s", "orders", at, func(d feed.Delivery) error {
				last, _ = wire.ParsePosition(d.ID)
				if d.ID == "7.0" {
					// While this one is slow, more happens than its queue holds, and then beats are due.
					for n := uint64(1); n <= 3; n++ {
						announce(f, position(n), entry(0, n, "orders"))
					}
				}
				time.Sleep(2 * feed.BeatInterval)
				return nil
			})
			if !errors.Is(err, feed.ErrSlow) || last.Numbers[0] > 1 {
				t.Fatalf("told %s, and then %v", last, err)
			}
		})
	}
}

func TestOneServerCannotTakeAllPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f := feed.New(feed.Config{PerServer: 1})
		announce(f, position(0))
		first := follow(ctx, f, "orders", "7.0")
		first.next(t)
		if second := follow(ctx, f, "orders", "7.0"); !errors.Is(<-second.done, feed.ErrFull) {
			t.Error("a second place for the same server")
		}
		at, _ := wire.ParsePosition("7.0")
		stop := errors.New("stop")
		if err := f.Follow(ctx, "another", "orders", at, func(feed.Delivery) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("no place for another: %v", err)
		}
	})
}

// TestALongAbsenceComesInPieces, and only the last of them moves the reader.
func TestALongAbsenceComesInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f := feed.New(feed.Config{})
		const n = 2*feed.MaxEntries + 1
		entries := make([]broker.Entry, n)
		for i := range entries {
			entries[i] = entry(0, uint64(i+1), "orders")
		}
		announce(f, position(n), entries...)
		r := follow(ctx, f, "orders", "7.0")
		got := 0
		for _, want := range []string{"7.0", "7.0", fmt.Sprintf("7.%d", n)} {
			d, e := r.next(t)
			if got += len(e.Entries); d.ID != want || len(e.Entries) > feed.MaxEntries {
				t.Errorf("%d entries at %s, want %s", len(e.Entries), d.ID, want)
			}
		}
		if got != n {
			t.Errorf("%d entries of %d", got, n)
		}
	})
}

// TestAStepBackIsAReset: a data set that lost its end is not the one that the readers know.
func TestAStepBackIsAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		announce(f, position(3), entry(0, 1, "orders"), entry(0, 3, "orders"))
		r := follow(t.Context(), f, "orders", "7.3")
		r.next(t)
		announce(f, position(2), entry(0, 1, "orders"), entry(0, 2, "orders"))
		if err := <-r.done; !errors.Is(err, feed.ErrReset) {
			t.Error(err)
		}
		// The same again, as when the feed is read from its beginning, changes nothing.
		announce(f, position(2), entry(0, 1, "orders"), entry(0, 2, "orders"))
		if s, _ := f.Snapshot("orders"); s.Position != "7.2" || len(s.Entries) != 2 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestEarlyDenialsReachEverybodyAndMoveNobody, for as long as they are not settled.
func TestEarlyDenialsReachEverybodyAndMoveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		announce(f, position(3))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		there := follow(ctx, f, "a", "7.3")
		there.next(t) // where it is
		synctest.Wait()
		early := entry(0, 0)
		f.Early(early)
		joining := follow(ctx, f, "b", "7.3")
		joining.next(t)
		for what, reader := range map[string]*follower{"who was there": there, "who joins": joining} {
			if d, e := reader.next(t); d.Event != wire.EventDenials || d.ID != "" || len(e.Entries) != 1 || e.Entries[0].ID != string(early.Denial.Task) || e.Entries[0].Number != 0 {
				t.Errorf("%s got %+v under %q", what, e, d.ID)
			}
		}
		if s, err := f.Snapshot("c"); err != nil || len(s.Entries) != 1 || s.Position != "7.3" || f.Entries() != 0 {
			t.Errorf("snapshot %+v, %v", s, err)
		}
		// Another data set does not undo it.
		f.Announce(broker.Update{Position: broker.Position{Epoch: epoch + 1, Numbers: []uint64{0}}, Now: time.Now()})
		if s, err := f.Snapshot("c"); err != nil || len(s.Entries) != 1 {
			t.Errorf("snapshot of another data set %+v, %v", s, err)
		}
		f.Settled(early.Denial)
		if s, err := f.Snapshot("c"); err != nil || len(s.Entries) != 0 {
			t.Errorf("snapshot afterwards %+v, %v", s, err)
		}
		late := follow(ctx, f, "c", "8.0")
		if d, e := late.next(t); d.Event != wire.EventBeat || len(e.Entries) != 0 {
			t.Errorf("who joins afterwards got %+v", e)
		}
		cancel()
		for _, reader := range []*follower{there, joining, late} {
			<-reader.done
		}
	})
}

// TestManyEarlyDenialsComeInPieces, and none is lost to who joins.
func TestManyEarlyDenialsComeInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.New(feed.Config{})
		announce(f, position(0))
		want := feed.MaxEntries + 1
		for i := range want {
			e := entry(0, 0)
			e.Denial.Task = broker.TaskID(fmt.Sprintf("tsk_%d", i))
			f.Early(e)
		}
		ctx, cancel := context.WithCancel(t.Context())
		reader := follow(ctx, f, "a", "7.0")
		reader.next(t)
		got := map[string]bool{}
		for range 2 {
			d, e := reader.next(t)
			if len(e.Entries) > feed.MaxEntries || d.ID != "" {
				t.Errorf("%d entries in one piece, under %q", len(e.Entries), d.ID)
			}
			for _, entry := range e.Entries {
				got[entry.ID] = true
			}
		}
		if len(got) != want {
			t.Errorf("%d of %d", len(got), want)
		}
		cancel()
		<-reader.done
	})
}
