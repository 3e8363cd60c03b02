package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

const (
	// beat is how often a position is read when nothing happens. It leaves time for a slow answer.
	beat = broker.WatchInterval / 2

	// pace is the least time between two reads. What comes in between goes with the next one, so that
	// a busy feed is not read once for each entry.
	pace = 5 * time.Millisecond

	// maxEntries bounds the entries in one answer; a reader that is far behind makes more calls.
	maxEntries = 1000

	// checkInterval is how often a watcher looks whether the servers can still be trusted.
	checkInterval = 2 * time.Second
)

// Watch delivers what comes after a position. A read that waits in Redis for the next entry wakes it
// up; what it delivers then is read by a script, whose answer is of one moment.
func (s *Store) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wakers sync.WaitGroup
	defer wakers.Wait()
	defer cancel(nil)
	r := &reader{store: s, at: from.Clone(), known: make([]*broker.Control, s.shards)}
	awake := make(chan struct{}, 1)
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for started := false; ; {
		began := time.Now()
		update, err := r.next(ctx)
		if deadline, ok := ctx.Deadline(); ok && err != nil && !time.Now().Before(deadline) {
			<-ctx.Done() // the connection noticed first
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if err := emit(update); err != nil {
			return err
		}
		if !started {
			r.startWakers(ctx, &wakers, awake)
			started = true
		}
		select {
		case <-ctx.Done():
		case <-awake:
			rest(ctx, pace-time.Since(began))
		case <-tick.C:
		}
	}
}

// rest returns after a while, or when ctx ends.
func rest(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// reader is how far one Watch has come.
type reader struct {
	store   *Store
	at      broker.Position
	numbers atomic.Pointer[[]uint64] // of at, for the wakers
	known   []*broker.Control        // by shard; nil before the first delivery
	lastNow time.Time
	checked time.Time // when the servers were looked at
}

// next is read, after a look at the servers when it is time for one: the first time before anything is delivered.
func (r *reader) next(ctx context.Context) (broker.Update, error) {
	if time.Since(r.checked) >= checkInterval {
		if err := r.store.checkAgain(ctx); err != nil {
			return broker.Update{}, err
		}
		r.checked = time.Now()
	}
	return r.read(ctx)
}

// read returns what the reader has not seen yet.
func (r *reader) read(ctx context.Context) (broker.Update, error) {
	s := r.store
	began := time.Now()
	seen := s.known()
	n := s.shards
	if r.at.IsZero() {
		r.at = broker.Position{Epoch: seen.Epoch, Numbers: make([]uint64, n)}
	}
	if r.at.Epoch != seen.Epoch || len(r.at.Numbers) != n {
		return broker.Update{}, broker.ErrEpoch
	}
	update := broker.Update{Position: r.at.Clone(), Now: r.lastNow}
	changed := r.known[0] == nil
	todo := make([]int, n)
	for shard := range todo {
		todo[shard] = shard
	}
	for len(todo) > 0 {
		var calls []call
		for _, shard := range todo {
			version := "-1"
			if c := r.known[shard]; c != nil {
				version = strconv.FormatUint(c.Version, 10)
			}
			calls = append(calls, call{
				script: s.scripts.watch, shard: shard, echo: fmt.Sprintf("watch %d", shard), epoch: seen.Epoch,
				args: []any{update.Position.Numbers[shard], version, maxEntries, seen.marks[shard].number, seen.marks[shard].text},
			})
		}
		var behind []int
		for _, answer := range s.send(ctx, calls) {
			more, control, err := r.take(&answer, &update, seen.Numbers[answer.shard])
			if err != nil {
				return broker.Update{}, s.lost(ctx, err)
			}
			changed = changed || control
			if more {
				behind = append(behind, answer.shard)
			}
		}
		todo = behind
	}
	r.at, r.lastNow = update.Position.Clone(), update.Now
	numbers := r.at.Numbers
	r.numbers.Store(&numbers)
	if changed {
		for _, c := range r.known {
			update.Controls = append(update.Controls, at(*c, update.Now))
		}
	}
	standing := update.Entries[:0]
	for _, e := range update.Entries {
		if update.Now.Before(e.Until) {
			standing = append(standing, e)
		}
	}
	update.Entries = standing
	update.Age = time.Since(began)
	return update, nil
}

// errOlder is what a shard has become that was further before this read.
var errOlder = fmt.Errorf("%w: a shard has gone back to older data", broker.ErrEpoch)

// take adds the answer of one shard to an update; seen is how far the shard had been before. It reports
// whether there is more in the shard, and whether the control list has changed.
func (r *reader) take(answer *reply, update *broker.Update, seen uint64) (more, control bool, err error) {
	if answer.err == nil && answer.status == "older" {
		if answer.left > 0 {
			key := answer.text()
			if answer.err != nil {
				return false, false, answer.err
			}
			return false, false, fmt.Errorf("%w: %s has gone", errOlder, key)
		}
		return false, false, errOlder
	}
	if answer.err == nil && answer.status != "ok" {
		answer.err = answer.refusal()
	}
	now := answer.moment()
	number, reached, version := uint64(answer.number()), uint64(answer.number()), uint64(answer.number())
	text := answer.text()
	var entries []broker.Entry
	answer.each(func(item *reply) {
		if e, ok := item.entry(r.store.feeds[answer.shard]); ok {
			entries = append(entries, e)
		}
	})
	if answer.left > 0 || r.known[answer.shard] == nil { // the first answer must have it
		c := answer.control(version, keyOf(r.store.prefix, answer.shard, "denials"))
		r.known[answer.shard] = &c
		control = true
	}
	if answer.err != nil {
		return false, false, answer.err
	}
	switch {
	case number < seen:
		return false, false, errOlder
	case number < update.Position.Numbers[answer.shard]:
		return false, false, broker.ErrEpoch
	}
	update.Now = later(update.Now, now)
	update.Position.Numbers[answer.shard] = reached
	update.Entries = append(update.Entries, entries...)
	r.store.reached(answer.epoch, answer.shard, reached)
	r.store.read(answer.epoch, answer.shard, mark{reached, text})
	return reached < number, control, nil
}

// lost adopts the new epoch after data were lost, or begins one when nobody has noticed yet, and leaves
// it to the caller to begin again.
func (s *Store) lost(ctx context.Context, err error) error {
	if !errors.Is(err, broker.ErrEpoch) {
		return err
	}
	was := s.knownEpoch()
	if errors.Is(err, errOlder) {
		if err := s.renew(ctx, was, was); err != nil {
			return err
		}
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.knownEpoch() != was {
		s.logger.Error("redis has lost its data; all older tokens are dead", "epoch", s.knownEpoch(), "was", was, "why", err)
	}
	return broker.ErrEpoch
}

// startWakers waits in Redis for the next entry: in one call for all shards, or on a cluster, where
// they are on different nodes, in one for each.
func (r *reader) startWakers(ctx context.Context, wakers *sync.WaitGroup, awake chan<- struct{}) {
	var shards []int
	for shard := range r.store.shards {
		shards = append(shards, shard)
	}
	groups := [][]int{shards}
	if r.store.cluster {
		groups = slices.Collect(slices.Chunk(shards, 1))
	}
	for _, group := range groups {
		wakers.Go(func() {
			for ctx.Err() == nil {
				r.wake(ctx, group, awake)
			}
		})
	}
}

// wake waits for an entry in the feeds of some shards that has not been read, and tells of it. Its
// errors are not told: whoever is woken up, or by the beat, reads for itself.
func (r *reader) wake(ctx context.Context, shards []int, awake chan<- struct{}) {
	args := redis.XReadArgs{Count: 1, Block: beat}
	for _, shard := range shards {
		args.Streams = append(args.Streams, r.store.feeds[shard])
	}
	numbers := *r.numbers.Load()
	for _, shard := range shards {
		args.Streams = append(args.Streams, fmt.Sprintf("%d-0", numbers[shard]))
	}
	bounded, cancel := context.WithTimeout(ctx, beat+r.store.limits.call)
	streams, err := r.store.client.XRead(bounded, &args).Result()
	cancel()
	switch {
	case len(streams) > 0:
		select {
		case awake <- struct{}{}:
		default:
		}
		rest(ctx, pace)
	case err != nil && !errors.Is(err, redis.Nil):
		rest(ctx, beat)
	}
}
