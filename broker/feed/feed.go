// Package feed tells verifiers what is dead. Give a Feed to the broker as its Announcer, and serve
// Snapshot, Follow and Position to verifiers.
//
// A Feed is a copy of what the store's feed says, filtered by audience for each reader. What it
// promises a reader that starts with a snapshot and follows from its position: every denial for its
// audience, each shard's in order, none missing, whichever replica it asks next. Announce never
// waits for a reader: one that does not keep up is dropped, and resumes from its last position.
//
// What is in force on this replica before the store has it goes out early: to every reader, without
// a position, and to those that join, until the store's own entry has come.
//
// The entries held are those that the store holds: each goes when the last token that it can kill
// has expired, so there are as many as endings in a few minutes.
package feed

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// Bounds of a feed.
const (
	DefaultBuffer    = 256  // deliveries that wait for one reader
	DefaultReaders   = 2000 // at once
	DefaultPerServer = 32   // at once, of one server: a broken one must not take the others' places

	// MaxEntries is how many entries one delivery has at most.
	MaxEntries = 2000

	trimInterval = time.Second
)

// Errors of readers.
var (
	// ErrCursor: the position is not one of this feed; take a snapshot.
	ErrCursor = errors.New("feed: position of another epoch")
	// ErrSlow: the reader did not keep up; connect again from its last position.
	ErrSlow = errors.New("feed: reader too slow")
	// ErrReset: this replica is going away, or its data set is another one; connect again.
	ErrReset = errors.New("feed: reset")
	// ErrFull: there are as many readers as allowed; ask another replica.
	ErrFull = errors.New("feed: too many readers")
)

// Config has the bounds; zero values are the defaults.
type Config struct {
	Buffer     int
	MaxReaders int
	PerServer  int
	Now        func() time.Time // nil is time.Now; for ages alone
}

// Feed implements broker.Announcer. It is safe for concurrent use.
type Feed struct {
	Config

	mu       sync.Mutex // guards all below; held for memory work only
	position broker.Position
	readAt   time.Time                      // ours: when the store proved the position
	entries  [][]broker.Entry               // by shard, in the order of their numbers
	trimmed  time.Time                      // the store's
	early    map[broker.Denial]broker.Entry // those that the store's feed does not have yet
	readers  map[*reader]struct{}
	closed   bool
}

// New makes an empty feed. Until the first Announce everything answers broker.ErrNotReady.
func New(c Config) *Feed {
	c.Buffer = cmp.Or(c.Buffer, DefaultBuffer)
	c.MaxReaders = cmp.Or(c.MaxReaders, DefaultReaders)
	c.PerServer = cmp.Or(c.PerServer, DefaultPerServer)
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Feed{Config: c, early: map[broker.Denial]broker.Entry{}, readers: map[*reader]struct{}{}}
}

// Announce takes in one delivery of the store's feed and passes it on to the readers.
func (f *Feed) Announce(u broker.Update) {
	readAt := f.Now().Add(-u.Age) // before waiting for mu: the wait is part of the age
	f.mu.Lock()
	defer f.mu.Unlock()
	if !wire.Position(u.Position).Covers(wire.Position(f.position)) {
		// Another data set, or one that has lost its end: nothing of before can be built on.
		f.entries = make([][]broker.Entry, len(u.Position.Numbers))
		f.position = broker.Position{Epoch: u.Position.Epoch, Numbers: make([]uint64, len(u.Position.Numbers))}
		f.dropAll(ErrReset)
	}
	fresh := f.unknown(u.Entries)
	f.position, f.readAt = u.Position.Clone(), readAt
	for _, e := range fresh {
		f.entries[e.Shard] = append(f.entries[e.Shard], e)
	}
	if u.Now.Sub(f.trimmed) >= trimInterval {
		f.trim(u.Now)
	}
	if len(fresh) > 0 {
		f.deliver(fresh)
	}
}

// Early tells every reader of a denial that the store's feed does not have yet.
func (f *Feed) Early(e broker.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.early[e.Denial] = e
	d := earlyDelivery([]broker.Entry{e})
	for r := range f.readers {
		f.send(r, d)
	}
}

// Settled forgets an early denial.
func (f *Feed) Settled(d broker.Denial) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.early, d)
}

// earlyDelivery moves no reader's position: it names none.
func earlyDelivery(entries []broker.Entry) Delivery {
	body := wire.FeedEvent{}
	for _, e := range entries {
		body.Entries = append(body.Entries, encode(e))
	}
	return newDelivery(wire.EventDenials, body)
}

// unknown leaves out what is there already, as when the store's feed was read again from its
// beginning.
func (f *Feed) unknown(entries []broker.Entry) []broker.Entry {
	known := func(e broker.Entry) bool { return e.Number <= f.position.Numbers[e.Shard] }
	if !slices.ContainsFunc(entries, known) {
		return entries
	}
	return slices.DeleteFunc(slices.Clone(entries), known)
}

// trim drops what can kill no token any more. It makes new lists, since readers that are joining
// still encode the old ones.
func (f *Feed) trim(now time.Time) {
	f.trimmed = now
	passed := func(e broker.Entry) bool { return !now.Before(e.Until) }
	for shard, entries := range f.entries {
		if slices.ContainsFunc(entries, passed) {
			f.entries[shard] = slices.DeleteFunc(slices.Clone(entries), passed)
		}
	}
}

// deliver encodes the entries once for each audience that has readers.
func (f *Feed) deliver(entries []broker.Entry) {
	encoded := map[string]*Delivery{}
	for r := range f.readers {
		d, ok := encoded[r.audience]
		if !ok {
			d = f.delivery(r.audience, entries)
			encoded[r.audience] = d
		}
		if d == nil {
			continue
		}
		f.send(r, *d)
	}
}

// send is called with mu held.
func (f *Feed) send(r *reader, d Delivery) {
	select {
	case r.queue <- d:
	default:
		f.drop(r, ErrSlow)
	}
}

// delivery returns nil when none of the entries is for the audience.
func (f *Feed) delivery(audience string, entries []broker.Entry) *Delivery {
	filtered := filter(audience, entries)
	if len(filtered) == 0 {
		return nil
	}
	d := newDelivery(wire.EventDenials, wire.FeedEvent{Position: text(f.position), Entries: filtered})
	return &d
}

// Snapshot returns everything that is denied for an audience, and the position that it reflects.
func (f *Feed) Snapshot(audience string) (wire.FeedSnapshot, error) {
	f.mu.Lock()
	position, lists := f.position, append(slices.Clone(f.entries), slices.Collect(maps.Values(f.early)))
	f.mu.Unlock()
	if position.IsZero() {
		return wire.FeedSnapshot{}, broker.ErrNotReady
	}
	snapshot := wire.FeedSnapshot{Position: text(position), Entries: []wire.FeedEntry{}}
	for _, entries := range lists {
		snapshot.Entries = append(snapshot.Entries, filter(audience, entries)...)
	}
	return snapshot, nil
}

// Position answers a reader's nonce with how far this replica is and how old that knowledge is.
func (f *Feed) Position(nonce string) (wire.FeedPosition, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.position.IsZero() {
		return wire.FeedPosition{}, broker.ErrNotReady
	}
	now := f.Now()
	// The monotonic clock stands still while a machine sleeps, the other may be set: take the greater.
	age := max(0, now.Sub(f.readAt), now.Round(0).Sub(f.readAt.Round(0)))
	return wire.FeedPosition{Nonce: nonce, Position: text(f.position), AgeMS: (age + time.Millisecond - 1).Milliseconds()}, nil
}

// Readers is how many follow now.
func (f *Feed) Readers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.readers)
}

// Entries is how many denials are held, early ones aside.
func (f *Feed) Entries() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, entries := range f.entries {
		n += len(entries)
	}
	return n
}

// Close tells all readers to go elsewhere, and refuses new ones.
func (f *Feed) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.dropAll(ErrReset)
}

func filter(audience string, entries []broker.Entry) []wire.FeedEntry {
	var out []wire.FeedEntry
	for _, e := range entries {
		if e.For(audience) {
			out = append(out, encode(e))
		}
	}
	return out
}

func encode(e broker.Entry) wire.FeedEntry {
	out := wire.FeedEntry{Shard: e.Shard, Number: e.Number, Kind: string(e.Denial.Kind), Until: e.Until.UTC()}
	switch e.Denial.Kind {
	case broker.DenyGrant:
		out.ID = string(e.Denial.Grant)
	case broker.DenyTask:
		out.ID = string(e.Denial.Task)
	case broker.DenyKey:
		out.ID = e.Denial.Key
	case broker.DenySelector:
		out.Subject, out.Audience, out.Scope = e.Denial.Selector.Subject, e.Denial.Selector.Audience, e.Denial.Selector.Scope
	}
	return out
}

func text(p broker.Position) string { return wire.Position(p).String() }

// Delivery is one server-sent event, encoded.
type Delivery struct {
	Event string // wire.EventDenials, EventBeat or EventReset
	ID    string // the position; empty for a reset, and for what moves nobody's
	Data  []byte // one line of JSON
}

func newDelivery(event string, body wire.FeedEvent) Delivery {
	data, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("feed: an event of plain values must marshal: %v", err))
	}
	return Delivery{Event: event, ID: body.Position, Data: data}
}
