// Package memory keeps tasks, grants, locks and denials in this process: the store of a broker that
// runs alone, and the readable reference for every other store. Start with New.
//
// It keeps the contract of broker.Store with one mutex, plain maps and a queue of alarms. A restart
// begins another data set with another epoch, which makes every older token dead; that is what its
// receipts call durable. Memory is bounded by what is alive: a task goes away at the latest Margin
// after its end and its last token's, and a denial when it can kill no token any more. The store has
// no goroutine of its own and need not be closed.
package memory

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// Config has what a Store may be told. The zero value is a good one.
type Config struct {
	// Shards is the number of shards, 1 when zero and broker.MaxShards at most. More than one is
	// for tests of what sharded stores do; here all of them are behind the same mutex.
	Shards int

	// Now is the clock that decides every life; nil is the time at New and what has passed since.
	// When it goes backwards the store's time stands still.
	Now func() time.Time
}

// Store implements broker.Store, and broker.Board. Make one with New; it is safe for concurrent use.
type Store struct {
	clock func() time.Time
	epoch uint64

	mu      sync.Mutex // guards all below; held for memory work only
	last    time.Time  // the store's time is never before it
	shards  []*shard
	locks   []*lock                      // the same in every shard
	board   map[string]map[string]posted // by kind and ID
	alarms  alarms
	trimmed time.Time
	changed chan struct{} // closed and replaced when a shard's number moves
}

var _ broker.Store = (*Store)(nil)

// shard is one numbered feed and the tasks that are announced in it.
type shard struct {
	index   int
	number  uint64         // of the newest change
	version uint64         // of the newest change to the control list
	entries []broker.Entry // in the order of their numbers
	denials []broker.Entry // those of them that the control list has
	tasks   map[broker.TaskID]*task
	grants  map[broker.GrantID]*grant
	keys    map[key]*task
	used    map[broker.DelegationID]*used
	due     map[broker.TaskID]*task // past their own lease or deadline, and ended by nobody
	usage   map[spiffeid.ID]*usage
}

// usage is what counts against a workload's quota.
type usage struct{ tasks, grants int }

// New makes an empty store. Its epoch is the time in Unix milliseconds.
func New(c Config) (*Store, error) {
	if c.Shards < 0 || c.Shards > broker.MaxShards {
		return nil, fmt.Errorf("memory: Config.Shards is %d; it must be 1 to %d, or 0 for 1", c.Shards, broker.MaxShards)
	}
	if c.Now == nil {
		// The monotonic clock carries it: a step of the wall clock must not stretch a life.
		start := time.Now()
		c.Now = func() time.Time { return start.Add(time.Since(start)) }
	}
	s := &Store{clock: c.Now, changed: make(chan struct{}), board: map[string]map[string]posted{}}
	for i := range max(1, c.Shards) {
		s.shards = append(s.shards, &shard{
			index:  i,
			tasks:  map[broker.TaskID]*task{},
			grants: map[broker.GrantID]*grant{},
			keys:   map[key]*task{},
			used:   map[broker.DelegationID]*used{},
			due:    map[broker.TaskID]*task{},
			usage:  map[spiffeid.ID]*usage{},
		})
	}
	now := s.enter()
	defer s.mu.Unlock()
	if now.UnixMilli() <= 0 {
		return nil, fmt.Errorf("memory: the clock says %s; set it, since the epoch must be after 1970", now)
	}
	s.epoch = uint64(now.UnixMilli())
	return s, nil
}

// enter takes the store for one call, which must unlock mu. It returns the store's time, with
// everything done that was due by then.
func (s *Store) enter() time.Time {
	s.mu.Lock()
	// Whole milliseconds, as in every other store: lives are then the same in all of them.
	s.last = later(s.last, s.clock().UTC().Truncate(time.Millisecond))
	s.settle(s.last)
	return s.last
}

// shard returns the shard that an ID names. There is nothing in a shard that is not there.
func (s *Store) shard(index int) (*shard, error) {
	if index < 0 || index >= len(s.shards) {
		return nil, broker.ErrNotFound
	}
	return s.shards[index], nil
}

// advance gives the next change in a shard its number, and wakes the watchers.
func (s *Store) advance(sh *shard) uint64 {
	sh.number++
	close(s.changed)
	s.changed = make(chan struct{})
	return sh.number
}

// announce appends an entry to a shard's feed.
func (s *Store) announce(sh *shard, e broker.Entry) {
	e.Shard, e.Number = sh.index, s.advance(sh)
	sh.entries = append(sh.entries, e)
	if e.Denial.Kind == broker.DenySelector || e.Denial.Kind == broker.DenyAll {
		sh.denials = append(sh.denials, e)
		sh.version = e.Number
	}
}

func (s *Store) position() broker.Position {
	p := broker.Position{Epoch: s.epoch}
	for _, sh := range s.shards {
		p.Numbers = append(p.Numbers, sh.number)
	}
	return p
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func cloneEntry(e broker.Entry) broker.Entry {
	e.Audiences = slices.Clone(e.Audiences)
	return e
}
