// Package redis keeps tasks, grants, locks and denials in Redis 7.0 or later: the store of brokers
// that run side by side, or whose restart must not matter. Start with New, and Close in the end.
//
// It keeps the contract of broker.Store with one Lua script for each operation, which runs whole or
// not at all in one shard, and in the store's own time. Every key of a shard is known by name before
// a script runs, has the shard's hash tag, and so is in one slot of a Redis Cluster. Nothing expires
// by itself: scripts take away what has passed, a bounded number at a time, and answer by the moments
// in the records, whether or not somebody has come by. What cannot be read is never alive. README.md
// has the keys and the scripts.
//
// A receipt is durable as far as the server is: what its persistence and replication lose is lost.
// A data set that has lost data has another epoch, or none, and every call then fails until the feed
// is followed anew.
package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

// DefaultPrefix begins the name of every key.
const DefaultPrefix = "errand:"

// ClusterShards is the number of shards on a Redis Cluster when Config has none; it is 1 elsewhere.
const ClusterShards = 16

// Config has what a Store must be told. Only URL has no default.
type Config struct {
	// URL says where Redis is and how to log in: redis://user:password@host:6379/0, rediss:// for
	// TLS, unix:///path for a socket; redis+cluster:// or rediss+cluster:// with the address of any
	// node; redis+sentinel:// with ?master_name= and the address of a sentinel. More addresses go
	// into ?addr=.
	URL string

	// Prefix begins every key; DefaultPrefix when empty. It must have no braces.
	Prefix string

	// Shards is the number of shards of the data set, broker.MaxShards at most. It is fixed when
	// the data set is made.
	Shards int

	// Logger hears of data that was lost; slog.Default() when nil.
	Logger *slog.Logger
}

// Store implements broker.Store. Make one with New; it is safe for concurrent use.
type Store struct {
	client  redis.UniversalClient
	cluster bool
	keys    [][]string // by shard
	scripts scripts
	logger  *slog.Logger

	mu      sync.Mutex // guards epoch and numbers; never held during a call
	epoch   uint64     // of the data set that calls are for
	numbers []uint64   // what each shard is known to have reached in it
}

var _ broker.Store = (*Store)(nil)

// New connects to Redis, checks that it can be trusted with the data, and makes a data set if there
// is none.
func New(ctx context.Context, c Config) (*Store, error) {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if strings.ContainsAny(c.Prefix, "{}") {
		return nil, fmt.Errorf("redis: Config.Prefix is %q; it must have no braces", c.Prefix)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	client, cluster, err := connect(c.URL)
	if err != nil {
		return nil, err
	}
	if c.Shards == 0 {
		c.Shards = 1
		if cluster {
			c.Shards = ClusterShards
		}
	}
	if c.Shards < 1 || c.Shards > broker.MaxShards {
		_ = client.Close()
		return nil, fmt.Errorf("redis: Config.Shards is %d; it must be 1 to %d, or 0 for the default", c.Shards, broker.MaxShards)
	}
	s := &Store{client: client, cluster: cluster, scripts: newScripts(), logger: c.Logger}
	for shard := range c.Shards {
		s.keys = append(s.keys, keysOf(c.Prefix, shard))
	}
	if err := s.check(ctx); err != nil {
		_ = client.Close()
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		_ = client.Close()
		return nil, err
	}
	return s, nil
}

// Close ends all connections. Calls that are under way fail.
func (s *Store) Close() error { return s.client.Close() }

// has reports whether there is such a shard. There is nothing in one that is not there.
func (s *Store) has(shard int) bool { return shard >= 0 && shard < len(s.keys) }

func (s *Store) knownEpoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

func (s *Store) epochText() string { return strconv.FormatUint(s.knownEpoch(), 10) }

// adopt makes calls be for a data set.
func (s *Store) adopt(epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != epoch {
		s.epoch, s.numbers = epoch, make([]uint64, len(s.keys))
	}
}

// reached notes how far a shard's feed is.
func (s *Store) reached(shard int, number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.numbers[shard] = max(s.numbers[shard], number)
}

// around returns the text of a position before and after a shard's own number. The numbers of the
// other shards are what they are known to have reached: they have no part in what happens in this
// one.
func (s *Store) around(shard int) (before, after string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, n := range s.numbers {
		switch text := strconv.FormatUint(n, 10); {
		case i < shard:
			before += text + "."
		case i > shard:
			after += "." + text
		}
	}
	return before, after
}

// unconfirmed says of an error that something may have happened all the same.
func unconfirmed(err error) error {
	if errors.Is(err, broker.ErrUnconfirmed) {
		return err
	}
	return fmt.Errorf("%w: %s", broker.ErrUnconfirmed, err)
}
