package feed

import (
	"cmp"
	"context"
	"maps"
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
	server   string
	audience string
	queue    chan Delivery
	gone     chan struct{} // closed when the feed has dropped the reader; err says why
	err      error
}

// Follow calls emit with everything for the audience after the position, from then on as it
// happens, and with beats. server is who reads. It returns ctx's error, what emit returned,
// ErrCursor, ErrSlow, ErrReset, ErrFull, or broker.ErrNotReady.
func (f *Feed) Follow(ctx context.Context, server, audience string, from wire.Position, emit func(Delivery) error) error {
	r := &reader{server: server, audience: audience, queue: make(chan Delivery, f.Buffer), gone: make(chan struct{})}
	position, lists, early, err := f.join(r, from)
	if err != nil {
		return err
	}
	defer f.leave(r)
	deliveries := missed(audience, from, position, lists)
	for piece := range slices.Chunk(early, MaxEntries) {
		deliveries = append(deliveries, earlyDelivery(piece))
	}
	for _, d := range deliveries {
		if err := emit(d); err != nil {
			return err
		}
	}
	tick := time.NewTicker(PositionInterval)
	defer tick.Stop()
	told, quiet := text(position), 0 // ticks since; by the ticker, since Config.Now may stand still
	for {
		var d Delivery
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.gone:
			return r.err
		case d = <-r.queue:
		case <-tick.C:
			quiet++
			var due bool
			if d, due = f.beat(r, told, quiet); !due {
				continue
			}
		}
		if err := emit(d); err != nil {
			return err
		}
		if d.ID != "" {
			told, quiet = d.ID, 0
		}
	}
}

// join registers a reader and returns what there was until then, in one step: nothing is lost in
// between. What it returns is not changed any more.
func (f *Feed) join(r *reader, from wire.Position) (_ broker.Position, lists [][]broker.Entry, early []broker.Entry, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return broker.Position{}, nil, nil, ErrReset
	case f.position.IsZero():
		return broker.Position{}, nil, nil, broker.ErrNotReady
	case !wire.Position(f.position).Covers(from):
		return broker.Position{}, nil, nil, f.ahead(from)
	case len(f.readers) >= f.MaxReaders || f.of(r.server) >= f.PerServer:
		return broker.Position{}, nil, nil, ErrFull
	}
	f.readers[r] = struct{}{}
	return f.position, slices.Clone(f.entries), slices.Collect(maps.Values(f.early)), nil
}

// of counts the readers of one server.
func (f *Feed) of(server string) (n int) {
	for r := range f.readers {
		if r.server == server {
			n++
		}
	}
	return n
}

// missed encodes what a reader has missed, a bounded number of entries at a time. Only the last
// delivery brings it to the position: one that loses its connection before starts over from where
// it was.
func missed(audience string, from wire.Position, position broker.Position, lists [][]broker.Entry) []Delivery {
	var entries []wire.FeedEntry
	for shard, list := range lists {
		after, _ := slices.BinarySearchFunc(list, from.Numbers[shard]+1, func(e broker.Entry, n uint64) int {
			return cmp.Compare(e.Number, n)
		})
		entries = append(entries, filter(audience, list[after:])...)
	}
	var out []Delivery
	for len(entries) > MaxEntries {
		out = append(out, newDelivery(wire.EventDenials, wire.FeedEvent{Position: from.String(), Entries: entries[:MaxEntries]}))
		entries = entries[MaxEntries:]
	}
	event := wire.EventBeat
	if len(entries) > 0 {
		event = wire.EventDenials
	}
	return append(out, newDelivery(event, wire.FeedEvent{Position: text(position), Entries: entries}))
}

// ahead tells a reader of another data set from one that another replica has brought further than
// this one is: that one need only wait.
func (f *Feed) ahead(from wire.Position) error {
	if from.Epoch == f.position.Epoch && len(from.Numbers) == len(f.position.Numbers) {
		return broker.ErrNotReady
	}
	return ErrCursor
}

// beat returns a beat if one is due: a position that the reader does not know yet, or any after
// BeatInterval. While deliveries wait for the reader there is none, since a beat must not name a
// position that those have not brought it to; and none for a reader that was dropped, since it lacks
// what came after.
func (f *Feed) beat(r *reader, told string, quiet int) (Delivery, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	position := text(f.position)
	_, stays := f.readers[r]
	if !stays || len(r.queue) > 0 || position == told && quiet < int(BeatInterval/PositionInterval) {
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
