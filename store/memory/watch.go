package memory

import (
	"context"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// Watch delivers what comes after a position. It wakes up at every change, and often enough in
// between to be never silent for longer than broker.WatchInterval.
func (s *Store) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	tick := time.NewTicker(broker.WatchInterval / 2)
	defer tick.Stop()
	reader := reader{at: from.Clone()}
	for ctx.Err() == nil {
		update, changed, err := s.news(&reader)
		if err != nil {
			return err
		}
		if err := emit(update); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-tick.C:
		}
	}
	return ctx.Err()
}

// reader is how far one Watch has come.
type reader struct {
	at       broker.Position
	versions []uint64 // of the control lists; nil before the first delivery
}

// news returns what the reader has not seen yet, and a channel that is closed when there is more.
func (s *Store) news(r *reader) (broker.Update, <-chan struct{}, error) {
	now := s.enter()
	defer s.mu.Unlock()
	if !s.has(r.at) {
		return broker.Update{}, nil, broker.ErrEpoch
	}
	if r.at.IsZero() {
		r.at = broker.Position{Epoch: s.epoch, Numbers: make([]uint64, len(s.shards))}
	}
	update := broker.Update{Position: s.position(), Now: now}
	var versions []uint64
	var controls []broker.Control
	for i, sh := range s.shards {
		update.Entries = append(update.Entries, sh.after(r.at.Numbers[i], now)...)
		versions = append(versions, sh.version)
	}
	if !slices.Equal(versions, r.versions) {
		for _, sh := range s.shards {
			controls = append(controls, s.control(sh, now))
		}
		update.Controls = controls
	}
	r.at, r.versions = update.Position.Clone(), versions
	return update, s.changed, nil
}

// has reports whether a position is the beginning, or one that this data set has reached.
func (s *Store) has(p broker.Position) bool {
	if p.IsZero() {
		return true
	}
	if p.Epoch != s.epoch || len(p.Numbers) != len(s.shards) {
		return false
	}
	for i, sh := range s.shards {
		if p.Numbers[i] > sh.number {
			return false
		}
	}
	return true
}

// after returns the entries with a higher number that can still kill a token.
func (sh *shard) after(number uint64, now time.Time) []broker.Entry {
	first, _ := slices.BinarySearchFunc(sh.entries, number+1, func(e broker.Entry, n uint64) int {
		if e.Number < n {
			return -1
		}
		return 1
	})
	var out []broker.Entry
	for _, e := range sh.entries[first:] {
		if now.Before(e.Until) {
			out = append(out, cloneEntry(e))
		}
	}
	return out
}
