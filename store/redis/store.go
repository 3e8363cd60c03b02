// Package redis keeps tasks, grants, locks and denials in Redis 7.0 or later: the store of brokers
// that run side by side, or whose restart must not matter. Start with New, and Close in the end.
//
// It keeps the contract of broker.Store with one Lua script for each operation, which runs whole or
// not at all in one shard, and in the store's own time. Every key is declared before a script runs,
// has its shard's hash tag, and so is in one slot of a Redis Cluster. Answers go by the moments in the
// records, whether or not somebody has come by to take away what has passed. What cannot be read is
// never alive, and is named in the log. README.md has the keys and the scripts.
//
// Calls that come at the same time share round trips, in lanes that have nothing to do with each
// other. When Redis does not answer, every call does within a second.
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
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

// DefaultPrefix begins the name of every key.
const DefaultPrefix = "errand:"

// ClusterShards is the number of shards on a Redis Cluster when Config has none; it is 1 elsewhere.
const ClusterShards = 16

// DefaultDeployment is the name of a data set's installation when Config has none.
const DefaultDeployment = "errand"

// Config has what a Store must be told. Only URL has no default.
type Config struct {
	// URL says where Redis is and who logs in: redis://user@host:6379/0, rediss:// for TLS,
	// unix:///path for a socket; redis+cluster:// or rediss+cluster:// with the address of any node;
	// redis+sentinel:// with the address of a sentinel and who logs in there, and in the query
	// master_name, and as username who logs in to Redis. More addresses go into ?addr=.
	URL string

	// PasswordFile has the password for Redis, and SentinelPasswordFile the one for Sentinel.
	PasswordFile         string
	SentinelPasswordFile string

	// CAFile has the authorities for the server's certificate; the system's when empty. It is read once. CertFile and
	// KeyFile are what this client shows, and are read anew for each connection. All are PEM.
	CAFile, CertFile, KeyFile string

	// Deployment names the installation. It is fixed when the data set is made; a store of another
	// one refuses to use it.
	Deployment string

	// Prefix begins every key; DefaultPrefix when empty. It must have no braces.
	Prefix string

	// Shards is the number of shards of the data set, broker.MaxShards at most. It is fixed when
	// the data set is made.
	Shards int

	// Now is the clock that Redis's is compared with at the start; time.Now when nil.
	Now func() time.Time

	// Logger hears of data that was lost or cannot be read; slog.Default() when nil.
	Logger *slog.Logger

	limits limits // usual when zero
}

func (c *Config) setDefaults() error {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if strings.ContainsAny(c.Prefix, "{}") {
		return fmt.Errorf("redis: Config.Prefix is %q; it must have no braces", c.Prefix)
	}
	if c.Deployment == "" {
		c.Deployment = DefaultDeployment
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.limits == (limits{}) {
		c.limits = usual
	}
	if c.Shards < 0 || c.Shards > broker.MaxShards {
		return fmt.Errorf("redis: Config.Shards is %d; it must be 1 to %d, or 0 for the default", c.Shards, broker.MaxShards)
	}
	return nil
}

// Store implements broker.Store, and broker.Board. Make one with New; it is safe for concurrent use.
type Store struct {
	client     redis.UniversalClient
	cluster    bool
	limits     limits
	clock      func() time.Time
	logger     *slog.Logger
	prefix     string
	deployment string
	scripts    scripts
	unreadable unreadable
	evictions  evictions

	shards        int
	feeds         []string // by shard: the key of the feed, and what begins that of a grant
	grantPrefixes []string
	rounds        []atomic.Uint64 // by shard: where the round is that puts back what tasks lack in the sets

	issues, ends, beats, lookups lanes
	runners                      sync.WaitGroup // of the lanes

	mu      sync.Mutex // guards epoch and numbers; never held during a call
	epoch   uint64     // of the data set that calls are for
	numbers []uint64   // what each shard is known to have reached in it
	marks   []mark     // the newest entry of each that was read
}

var _ broker.Store = (*Store)(nil)

// New connects to Redis, checks that it can be trusted with the data, and makes a data set if there
// is none. Its errors say what is wrong and how to mend it; those that may pass by themselves are
// broker.ErrUnavailable.
func New(ctx context.Context, c Config) (*Store, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	client, cluster, err := connect(c)
	if err != nil {
		return nil, err
	}
	if c.Shards == 0 {
		c.Shards = 1
		if cluster {
			c.Shards = ClusterShards
		}
	}
	s := &Store{
		client: client, cluster: cluster, limits: c.limits, clock: c.Now, logger: c.Logger, prefix: c.Prefix, deployment: c.Deployment,
		scripts: newScripts(c.Prefix, c.Shards), shards: c.Shards, rounds: make([]atomic.Uint64, c.Shards),
	}
	for shard := range c.Shards {
		s.feeds = append(s.feeds, keyOf(c.Prefix, shard, "feed"))
		s.grantPrefixes = append(s.grantPrefixes, keyOf(c.Prefix, shard, "g:"))
	}
	for _, l := range []*lanes{&s.issues, &s.ends, &s.beats, &s.lookups} {
		*l = s.newLanes(c.Shards)
	}
	for _, step := range []func(context.Context) error{s.check, s.checkPermissions, s.open} {
		if err := step(ctx); err != nil {
			_ = client.Close()
			return nil, err
		}
	}
	return s, nil
}

// Close ends all connections. Calls that are under way fail.
func (s *Store) Close() error {
	for _, list := range []lanes{s.issues, s.ends, s.beats, s.lookups} {
		for _, l := range list {
			l.close()
		}
	}
	err := s.client.Close()
	s.runners.Wait()
	return err
}

// has reports whether there is such a shard. There is nothing in one that is not there.
func (s *Store) has(shard int) bool { return shard >= 0 && shard < s.shards }

func (s *Store) knownEpoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// adopt makes calls be for a data set.
func (s *Store) adopt(epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != epoch {
		s.epoch, s.numbers, s.marks = epoch, make([]uint64, s.shards), make([]mark, s.shards)
	}
}

// reached notes how far a shard's feed is in an epoch.
func (s *Store) reached(epoch uint64, shard int, number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch == s.epoch {
		s.numbers[shard] = max(s.numbers[shard], number)
	}
}

// mark tells an entry of a shard's feed from another one under the same number, as there is when older
// data have come back and grown since.
type mark struct {
	number uint64
	text   string // what the entry denies, and until when; "" for none
}

// read notes an entry that was read in an epoch.
func (s *Store) read(epoch uint64, shard int, m mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch == s.epoch && m.text != "" && m.number > s.marks[shard].number {
		s.marks[shard] = m
	}
}

// seen is what is known of a data set: how far it has come, and the newest entries that were read.
type seen struct {
	broker.Position
	marks []mark
}

func (s *Store) known() seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return seen{broker.Position{Epoch: s.epoch, Numbers: slices.Clone(s.numbers)}, slices.Clone(s.marks)}
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
