package feed

import (
	"context"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// A reader hears a beat at least every BeatInterval, and within PositionInterval of a denial that
// was for somebody else, so that it can tell how far it is.
const (
	BeatInterval     = time.Second
	PositionInterval = 250 * time.Millisecond
)

// reader is one running Follow.
type reader struct {
	audience string
	queue    chan Delivery
	gone     chan struct{} // closed when the feed has dropped the reader; err says why
	err      error
}

// Follow calls emit with everything for the audience after the position, from then on as it
// happens, and with beats. It returns ctx's error, what emit returned, ErrCursor, ErrSlow, ErrReset,
// ErrFull, or broker.ErrNotReady.
func (f *Feed) Follow(ctx context.Context, audience string, from wire.Position, emit func(Delivery) error) error {
	r, first, err := f.join(audience, from)
	if err != nil {
		return err
	}
	defer f.leave(r)
	if err := emit(first); err != nil {
		return err
	}
	tick := time.NewTicker(PositionInterval)
	defer tick.Stop()
	told, toldAt := first.ID, f.Now()
	for {
		var d Delivery
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.gone:
			return r.err
		case d = <-r.queue:
		case <-tick.C:
			var due bool
			if d, due = f.beat(r, told, toldAt); !due {
				continue
			}
		}
		if err := emit(d); err != nil {
			return err
		}
		told, toldAt = d.ID, f.Now()
	}
}

// join registers a reader and returns what it has missed, in one step: nothing is lost in between.
func (f *Feed) join(audience string, from wire.Position) (*reader, Delivery, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, Delivery{}, ErrReset
	case f.position.IsZero():
		return nil, Delivery{}, broker.ErrNotReady
	case !wire.Position(f.position).Covers(from):
		return f.ahead(from)
	case len(f.readers) >= f.MaxReaders:
		return nil, Delivery{}, ErrFull
	}
	missed := []wire.FeedEntry{}
	for shard, entries := range f.entries {
		after, _ := slices.BinarySearchFunc(entries, from.Numbers[shard]+1, func(e broker.Entry, n uint64) int {
			return int(int64(e.Number) - int64(n))
		})
		missed = append(missed, filter(audience, entries[after:])...)
	}
	event := wire.EventBeat
	if len(missed) > 0 {
		event = wire.EventDenials
	}
	r := &reader{audience: audience, queue: make(chan Delivery, f.Buffer), gone: make(chan struct{})}
	f.readers[r] = struct{}{}
	return r, newDelivery(event, wire.FeedEvent{Position: text(f.position), Entries: missed}), nil
}

// ahead tells a reader of another data set from one that another replica has brought further than
// this one is: that one need only wait.
func (f *Feed) ahead(from wire.Position) (*reader, Delivery, error) {
	if from.Epoch == f.position.Epoch && len(from.Numbers) == len(f.position.Numbers) {
		return nil, Delivery{}, broker.ErrNotReady
	}
	return nil, Delivery{}, ErrCursor
}

// beat returns a beat if one is due: a position that the reader does not know yet, or any after
// BeatInterval. While deliveries wait for the reader there is none, since a beat must not name a
// position that those have not brought it to.
func (f *Feed) beat(r *reader, told string, toldAt time.Time) (Delivery, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	position := text(f.position)
	if len(r.queue) > 0 || position == told && f.Now().Sub(toldAt) < BeatInterval-PositionInterval/2 {
		return Delivery{}, false
	}
	return newDelivery(wire.EventBeat, wire.FeedEvent{Position: position}), true
}

func (f *Feed) leave(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.readers, r)
}

// drop is called with mu held.
func (f *Feed) drop(r *reader, why error) {
	r.err = why
	close(r.gone)
	delete(f.readers, r)
}

// dropAll is called with mu held.
func (f *Feed) dropAll(why error) {
	for r := range f.readers {
		f.drop(r, why)
	}
}
