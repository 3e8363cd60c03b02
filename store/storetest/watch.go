package storetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/errandhq/errand/broker"
)

func watchCases() []testCase {
	return []testCase{
		{"watch/delivers at once", watchAtOnce},
		{"watch/wakes up", watchWakes},
		{"watch/beats", watchBeats},
		{"watch/resumes anywhere", watchResumes},
		{"watch/position of another data set", watchForeign},
		{"watch/error of emit", watchEmitError},
		{"watch/end of the context", watchContext},
		{"watch/a slow reader blocks only itself", watchSlow},
		{"watch/control lists", watchControls},
		{"watch/epoch", watchEpoch},
	}
}

// watcher keeps what a Watch delivers.
type watcher struct {
	b    *bench
	stop context.CancelFunc
	done chan struct{} // closed when Watch has returned; err says why

	mu      sync.Mutex // guards updates
	updates []broker.Update
	err     error
}

// watch follows the feed from its beginning in the background, until stop or the end of the case.
func (b *bench) watch() *watcher {
	ctx, stop := context.WithCancel(b.Context())
	w := &watcher{b: b, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.err = b.store.Watch(ctx, broker.Position{}, func(u broker.Update) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.updates = append(w.updates, u)
			return nil
		})
	}()
	b.Cleanup(func() {
		stop()
		<-w.done
	})
	return w
}

func (w *watcher) seen() []broker.Update {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.updates)
}

func (w *watcher) entries() []broker.Entry {
	var out []broker.Entry
	for _, u := range w.seen() {
		out = append(out, u.Entries...)
	}
	return out
}

// patience is how long a case waits for something that should happen at once.
const patience = 5 * time.Second

// wait lets time pass until the updates are enough.
func (w *watcher) wait(what string, enough func([]broker.Update) bool) []broker.Update {
	w.b.Helper()
	for range int(patience / (5 * time.Millisecond)) {
		if seen := w.seen(); enough(seen) {
			return seen
		}
		w.b.Advance(5 * time.Millisecond)
	}
	w.b.Fatalf("waited in vain for %s; saw %+v", what, w.seen())
	return nil
}

// reaches waits until the watcher is at the position or further.
func (w *watcher) reaches(p broker.Position) {
	w.b.Helper()
	w.wait("the position", func(seen []broker.Update) bool {
		return len(seen) > 0 && covers(seen[len(seen)-1].Position, p)
	})
}

func covers(p, q broker.Position) bool {
	if p.Epoch != q.Epoch || len(p.Numbers) != len(q.Numbers) {
		return false
	}
	for i, n := range q.Numbers {
		if p.Numbers[i] < n {
			return false
		}
	}
	return true
}

func watchAtOnce(b *bench) {
	empty := b.feed()
	if len(empty.Entries) != 0 || empty.Position.Epoch == 0 || len(empty.Position.Numbers) != b.shards || len(empty.Controls) != b.shards {
		b.Fatalf("an empty store delivers %+v; want a position of %d shards and as many control lists", empty, b.shards)
	}
	var want []broker.Denial
	for range 3 {
		task := b.begin(asking(b.ask("a", time.Minute)))
		b.end(completing(task))
		want = append(want, ofTask(task))
	}
	update := b.feed()
	var got []broker.Denial
	for _, e := range update.Entries {
		got = append(got, e.Denial)
	}
	b.same("the entries", got, want)
	if n := update.Position.Numbers[b.shard]; n != 3 || update.Age < 0 || update.Age > time.Minute {
		b.Fatalf("got %+v; want number 3 and an age", update)
	}
}

// watchWakes ends a task right after a delivery, when the next beat is as far away as can be.
func watchWakes(b *bench) {
	w := b.watch()
	for i := range 3 {
		task := b.begin(asking(b.ask("a", time.Minute)))
		n := len(w.seen())
		w.wait("a beat", func(seen []broker.Update) bool { return len(seen) > n })
		receipt := b.end(completing(task)).Receipt
		seen := w.wait("the entry", func([]broker.Update) bool { return len(w.entries()) > i })
		for _, u := range seen {
			if len(u.Entries) > 0 && u.Entries[0].Denial == ofTask(task) && u.Now.Sub(receipt.Ended) >= broker.WatchInterval/4 {
				b.Errorf("the entry of %s was read at %s; a new entry must wake the watcher", receipt.Ended, u.Now)
			}
		}
	}
}

func watchBeats(b *bench) {
	w := b.watch()
	w.wait("the first delivery", func(seen []broker.Update) bool { return len(seen) > 0 })
	b.Advance(10 * broker.WatchInterval)
	seen := w.seen()
	if len(seen) < 10 {
		b.Fatalf("got %d deliveries in 10 intervals; want 10 at least", len(seen))
	}
	for i, u := range seen {
		if !covers(u.Position, seen[0].Position) || len(u.Entries) != 0 || u.Now.Before(seen[0].Now) {
			b.Errorf("delivery %d is %+v; want the position, and a time", i, u)
		}
		if (u.Controls != nil) != (i == 0) {
			b.Errorf("delivery %d has control lists: %v; want them in the first alone", i, u.Controls != nil)
		}
	}
}

func watchResumes(b *bench) {
	var positions []broker.Position
	b.begin()
	for i := range 12 {
		positions = append(positions, b.feed().Position)
		switch i % 3 {
		case 0:
			b.end(completing(b.begin(asking(b.ask("a", time.Minute)))))
		case 1:
			b.end(denying(broker.TargetSelector))
		case 2:
			b.end(b.locking(broker.Selector{Scope: "read"}, time.Hour))
		}
	}
	all := b.feed()
	positions = append(positions, all.Position)
	for _, from := range positions {
		asked := from.Clone()
		update, err := first(b.Context(), b.store, from)
		if err != nil {
			b.Fatalf("Watch from %v: %v", from, err)
		}
		b.same("the position that was asked for", from, asked)
		var want []broker.Entry
		for _, e := range all.Entries {
			if e.Number > from.Numbers[e.Shard] {
				want = append(want, e)
			}
		}
		sortEntries(want)
		sortEntries(update.Entries)
		b.same("the entries", update.Entries, want)
		b.same("the position", update.Position, all.Position)
		b.same("the control lists", update.Controls, all.Controls)
	}
}

// sortEntries orders by shard, since only the order within one is promised.
func sortEntries(entries []broker.Entry) {
	slices.SortStableFunc(entries, func(x, y broker.Entry) int { return x.Shard - y.Shard })
}

func watchForeign(b *bench) {
	b.end(completing(b.begin(asking(b.ask("a", time.Minute)))))
	here := b.feed().Position
	ahead, epoch, none := here.Clone(), here.Clone(), here.Clone()
	ahead.Numbers[b.shard]++
	epoch.Epoch++
	none.Epoch = 0
	past := here.Clone()
	past.Epoch--
	for name, from := range map[string]broker.Position{
		"ahead": ahead, "a later epoch": epoch, "an earlier epoch": past, "no epoch": none,
		"no shards":    {Epoch: here.Epoch},
		"more shards":  {Epoch: here.Epoch, Numbers: append(slices.Clone(here.Numbers), 0)},
		"fewer shards": {Epoch: here.Epoch, Numbers: here.Numbers[1:]},
	} {
		if _, err := first(b.Context(), b.store, from); !errors.Is(err, broker.ErrEpoch) {
			b.Errorf("%s: %v; want ErrEpoch", name, err)
		}
	}
	if _, err := first(b.Context(), b.store, here); err != nil {
		b.Errorf("the newest position: %v", err)
	}
}

func watchEmitError(b *bench) {
	calls := 0
	err := b.store.Watch(b.Context(), broker.Position{}, func(broker.Update) error {
		if calls++; calls == 3 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || calls != 3 {
		b.Fatalf("got error %v after %d deliveries; want emit's own after 3", err, calls)
	}
}

func watchContext(b *bench) {
	w := b.watch()
	w.wait("the first delivery", func(seen []broker.Update) bool { return len(seen) > 0 })
	w.stop()
	<-w.done
	if !errors.Is(w.err, context.Canceled) {
		b.Fatalf("got %v; want the context's error", w.err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 300*time.Millisecond)
	defer cancel()
	if err := b.store.Watch(ctx, broker.Position{}, func(broker.Update) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		b.Fatalf("got %v; want the context's error", err)
	}
}

func watchSlow(b *bench) {
	stuck, release := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	var late []broker.Entry
	go func() {
		calls := 0
		done <- b.store.Watch(b.Context(), broker.Position{}, func(u broker.Update) error {
			if calls++; calls == 1 {
				close(stuck)
				<-release
			}
			if late = append(late, u.Entries...); len(late) == 20 {
				return errEnough
			}
			return nil
		})
	}()
	<-stuck
	w := b.watch()
	for range 20 {
		b.end(completing(b.begin(asking(b.ask("a", time.Minute)))))
	}
	w.reaches(b.feed().Position)
	close(release)
	if err := <-done; !errors.Is(err, errEnough) {
		b.Fatal(err)
	}
	b.same("what the slow reader got", late, w.entries())
}

func watchControls(b *bench) {
	w := b.watch()
	w.wait("the first delivery", func(seen []broker.Update) bool { return len(seen) > 0 })
	lock := b.locking(broker.Selector{Scope: "read"}, time.Hour)
	for _, e := range []broker.Ending{
		lock, denying(broker.TargetKey), denying(broker.TargetSelector), lifting(lock.Lock.ID),
		completing(b.begin(asking(b.ask("a", time.Minute)))),
	} {
		n := len(w.seen())
		w.reaches(b.end(e).Receipt.Feed)
		var last []broker.Control
		for _, u := range w.seen()[n:] {
			if u.Controls != nil {
				last = u.Controls
			}
		}
		switch e.Kind {
		case broker.TargetKey, broker.TargetTask:
			if last != nil {
				b.Errorf("a %s delivered the control lists anew", e.Kind)
			}
		default:
			b.same("the control lists after a "+string(e.Kind), last, b.feed().Controls)
		}
	}
}

func watchEpoch(b *bench) {
	b.Advance(10 * time.Millisecond)
	other := *b
	other.store = b.New(b.T, b.shards)
	here, there := b.feed().Position, other.feed().Position
	if here.Epoch == there.Epoch {
		b.Fatalf("two data sets have the same epoch, %d", here.Epoch)
	}
	if _, err := first(b.Context(), other.store, here); !errors.Is(err, broker.ErrEpoch) {
		b.Fatalf("a position of another data set: %v; want ErrEpoch", err)
	}
	grant := other.issue(other.begin(), "a", time.Minute)
	b.same("the grant's epoch", grant.Epoch, there.Epoch)
}
