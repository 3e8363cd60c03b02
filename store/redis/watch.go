package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

const (
	// beat is how often a position is read when nothing happens. It leaves time for a slow answer.
	beat = broker.WatchInterval / 2

	// maxEntries bounds the entries in one answer; a reader that is far behind makes more calls.
	maxEntries = 1000
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
		update, err := r.read(ctx)
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
			s.startWakers(ctx, &wakers, update.Position, awake)
			started = true
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-awake:
		case <-tick.C:
		}
	}
}

// reader is how far one Watch has come.
type reader struct {
	store   *Store
	at      broker.Position
	known   []*broker.Control // by shard; nil before the first delivery
	lastNow time.Time
}

// read returns what the reader has not seen yet.
func (r *reader) read(ctx context.Context) (broker.Update, error) {
	s := r.store
	began := time.Now()
	epoch := s.knownEpoch()
	n := s.shards
	if r.at.IsZero() {
		r.at = broker.Position{Epoch: epoch, Numbers: make([]uint64, n)}
	}
	if r.at.Epoch != epoch || len(r.at.Numbers) != n {
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
				script: s.scripts.watch, shard: shard, echo: "watch", args: []any{update.Position.Numbers[shard], version, maxEntries},
			})
		}
		var behind []int
		for _, answer := range s.send(ctx, calls) {
			more, control, err := r.take(&answer, &update)
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

// take adds the answer of one shard to an update. It reports whether there is more in the shard, and
// whether the control list has changed.
func (r *reader) take(answer *reply, update *broker.Update) (more, control bool, err error) {
	if answer.err == nil && answer.status != "ok" {
		answer.err = answer.refusal()
	}
	now := answer.moment()
	number, reached, version := uint64(answer.number()), uint64(answer.number()), uint64(answer.number())
	var entries []broker.Entry
	answer.each(func(item *reply) {
		if e, ok := item.entry(); ok {
			entries = append(entries, e)
		}
	})
	if len(answer.rest) > 0 {
		c := answer.control(version)
		r.known[answer.shard] = &c
		control = true
	}
	if answer.err != nil {
		return false, false, answer.err
	}
	if number < update.Position.Numbers[answer.shard] {
		return false, false, broker.ErrEpoch
	}
	update.Now = later(update.Now, now)
	update.Position.Numbers[answer.shard] = reached
	update.Entries = append(update.Entries, entries...)
	r.store.reached(answer.shard, reached)
	return reached < number, control, nil
}

// lost adopts the new epoch after data were lost, and leaves it to the caller to begin again.
func (s *Store) lost(ctx context.Context, err error) error {
	if !errors.Is(err, broker.ErrEpoch) {
		return err
	}
	was := s.knownEpoch()
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.knownEpoch() != was {
		s.logger.Error("redis has lost its data; all older tokens are dead", "epoch", s.knownEpoch(), "was", was)
	}
	return broker.ErrEpoch
}

// startWakers waits in Redis for the next entry: in one call for all shards, or on a cluster, where
// they are on different nodes, in one for each.
func (s *Store) startWakers(ctx context.Context, wakers *sync.WaitGroup, from broker.Position, awake chan<- struct{}) {
	var shards []int
	for shard := range s.shards {
		shards = append(shards, shard)
	}
	groups := [][]int{shards}
	if s.cluster {
		groups = nil
		for _, shard := range shards {
			groups = append(groups, []int{shard})
		}
	}
	for _, group := range groups {
		wakers.Go(func() { s.wake(ctx, group, from.Numbers, awake) })
	}
}

// wake tells of each new entry in the feeds of some shards. Its errors are not told: whoever is woken
// up, or by the beat, reads for itself.
func (s *Store) wake(ctx context.Context, shards []int, from []uint64, awake chan<- struct{}) {
	args := &redis.XReadArgs{Count: maxEntries, Block: beat}
	for _, shard := range shards {
		args.Streams = append(args.Streams, s.feeds[shard])
	}
	ids := make([]string, len(shards))
	for i, shard := range shards {
		ids[i] = fmt.Sprintf("%d-0", from[shard])
	}
	for ctx.Err() == nil {
		args := *args
		args.Streams = append(args.Streams[:len(shards):len(shards)], ids...)
		bounded, cancel := context.WithTimeout(ctx, beat+callTimeout)
		streams, err := s.client.XRead(bounded, &args).Result()
		cancel()
		if err != nil && !errors.Is(err, redis.Nil) {
			select {
			case <-ctx.Done():
			case <-time.After(beat):
			}
			continue
		}
		for _, stream := range streams {
			for i, shard := range shards {
				if s.feeds[shard] == stream.Stream && len(stream.Messages) > 0 {
					ids[i] = stream.Messages[len(stream.Messages)-1].ID
				}
			}
		}
		if len(streams) > 0 {
			select {
			case awake <- struct{}{}:
			default:
			}
		}
	}
}
