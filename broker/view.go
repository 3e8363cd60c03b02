package broker

import (
	"context"
	"errors"
	"sync"
	"time"
)

// view is the broker's copy of what Store.Watch delivers: how far the feed is, and the control
// lists that decisions are made on.
type view struct {
	mu       sync.Mutex // guards all below; held for copies only
	position Position
	controls []Control
	now      time.Time     // the store's, of the last update
	at       time.Time     // ours, of the last update, less its age
	changed  chan struct{} // closed and replaced by every update
}

func newView() view { return view{changed: make(chan struct{})} }

// retryWatch is the pause before the store's feed is followed again after an error.
const retryWatch = 100 * time.Millisecond

// watch follows the store's feed. After an error it goes on from where it was, and from the
// beginning when the data set is another one.
func (b *Broker) watch(ctx context.Context) error {
	from := Position{}
	away := Fault{Logger: b.Logger, What: "the store's feed broke off; it is tried again", Over: "the store's feed is followed again"}
	for {
		err := b.Store.Watch(ctx, from, func(u Update) error {
			from = u.Position
			at := b.Now().Add(-u.Age)
			b.denyKeys(u.Entries)
			b.Announcer.Announce(u)
			b.view.apply(u, at)
			b.followers.entries(u.Entries...)
			away.Ended(b.Now())
			return nil
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrEpoch) {
			b.Logger.Error("the store has another data set; every token of the one before is dead", "error", err)
			from = Position{}
			b.view.forget()
			b.followers.reset(false) // their tasks are unknown now
		} else {
			away.Met(b.Now(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryWatch):
		}
	}
}

// denyKeys takes keys out of use that were revoked, here or at another replica.
func (b *Broker) denyKeys(entries []Entry) {
	for _, e := range entries {
		if e.Denial.Kind == DenyKey {
			b.Minter.Deny(e.Denial.Key)
		}
	}
}

func (v *view) apply(u Update, at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.position = u.Position.Clone()
	if u.Controls != nil {
		v.controls = u.Controls
	}
	v.now, v.at = u.Now, at
	close(v.changed)
	v.changed = make(chan struct{})
}

// forget makes the view be of nothing: what it knows of a data set that is no more must decide nothing
// in the next one, whose control lists may have lower versions.
func (v *view) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.position, v.controls = Position{}, nil
}

// age is how old the view is, and how far the store's clock was from ours when it was read.
func (v *view) age(now time.Time) (age, skew time.Duration, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return now.Sub(v.at), v.at.Round(0).Sub(v.now.Round(0)).Abs(), !v.position.IsZero()
}

// shards is 0 before the first reading.
func (v *view) shards() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.position.Numbers)
}

// epoch is that of the data set, and 0 before the first reading.
func (v *view) epoch() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.position.Epoch
}

// control returns the control list of a shard, and the store's time as of its reading.
func (v *view) control(shard int) (Control, time.Time, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.position.IsZero() {
		return Control{}, time.Time{}, notReady("the store's feed has not been read yet")
	}
	if shard >= len(v.controls) {
		return Control{}, time.Time{}, ErrNotFound
	}
	return v.controls[shard], v.now, nil
}

// covers reports whether everything up to a position has been read, or is of a data set that is no
// more.
func (v *view) covers(p Position) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.position.covers(p)
}

// reached is how far the view is; zero before the first reading.
func (v *view) reached() Position {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.position.Clone()
}

// reach waits for a moment until the view has reached a position of its data set.
func (v *view) reach(ctx context.Context, p Position) error {
	late := time.NewTimer(WatchInterval)
	defer late.Stop()
	for {
		v.mu.Lock()
		at, changed := v.position, v.changed
		v.mu.Unlock()
		switch {
		case at.IsZero():
			return notReady("the store's feed has not been read yet")
		case p.Epoch != at.Epoch || len(p.Numbers) != len(at.Numbers):
			return ErrEpoch
		case at.covers(p):
			return nil
		}
		select {
		case <-changed:
		case <-late.C:
			return notReady("the position is ahead of what this replica has read")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// since waits until the view is of a moment after at, and reports whether it has become so before it took too long.
func (v *view) since(ctx context.Context, at time.Time, long time.Duration) bool {
	late := time.NewTimer(long)
	defer late.Stop()
	for {
		v.mu.Lock()
		there, changed := v.at.After(at), v.changed
		v.mu.Unlock()
		if there {
			return true
		}
		select {
		case <-changed:
		case <-late.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// catchUp waits until the control list of a shard has reached a version, or ctx ends.
func (v *view) catchUp(ctx context.Context, behind *Behind) error {
	for {
		v.mu.Lock()
		changed := v.changed
		there := behind.Shard < len(v.controls) && v.controls[behind.Shard].Version >= behind.Version
		v.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &wrapped{ErrUnavailable, "the control list did not arrive in time"}
		}
	}
}
