package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

// minVersion is the first Redis whose scripts can have flags.
const minVersion = 7

// far is how long a round trip to a server takes that is too far away. The broker gives a write 400 ms, and one on a
// new connection needs five round trips at most: TCP, TLS, the login, the database, and its own. Where that is too
// little a call that fails, and so closes its connection, makes the next one fail.
const far = 80 * time.Millisecond

// eachPrimary calls f for each primary: on a cluster for all, at once.
func (s *Store) eachPrimary(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	if c, ok := s.client.(*redis.ClusterClient); ok {
		return c.ForEachMaster(ctx, f)
	}
	return f(ctx, s.client.(*redis.Client))
}

// check looks at every primary before anything is trusted to it.
func (s *Store) check(ctx context.Context) error {
	return explain(s.eachPrimary(ctx, func(ctx context.Context, node *redis.Client) error {
		if err := node.Ping(ctx).Err(); err != nil {
			return err
		}
		facts, err := s.look(ctx, node)
		if err != nil {
			return err
		}
		if facts["aof_enabled"] == "0" {
			s.logger.Warn("redis: appendonly is no, so a restart of the server loses tasks and ends; set it to yes", "server", node.Options().Addr)
		}
		took, err := roundTrip(ctx, node)
		if err != nil {
			return err
		}
		if took > far {
			s.logger.Warn("redis: the server is far away, so that many calls may fail; run the broker near it", "server", node.Options().Addr, "round trip", took, "at most", far)
		}
		before := s.clock()
		at, err := node.Time(ctx).Result()
		if err != nil {
			return err
		}
		return checkDrift("redis", at.Sub(before), s.clock().Sub(before))
	}))
}

// checkAgain looks whether every primary can still be trusted: its configuration may have changed, or another server has
// taken over.
func (s *Store) checkAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.limits.send)
	defer cancel()
	err := explain(s.eachPrimary(ctx, func(ctx context.Context, node *redis.Client) error {
		_, err := s.look(ctx, node)
		return err
	}))
	if err != nil && !errors.Is(err, broker.ErrUnavailable) {
		return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	}
	return err
}

// look returns what a server says of itself, unless it cannot be trusted.
func (s *Store) look(ctx context.Context, node *redis.Client) (map[string]string, error) {
	text, err := node.Info(ctx).Result()
	if err != nil {
		return nil, err
	}
	facts := factsOf(text)
	if err := checkFacts(facts, s.cluster); err != nil {
		return nil, err
	}
	if n := s.evictions.more(node.Options().Addr, facts); n > 0 {
		err := refusal("the server had another maxmemory-policy and has thrown %d keys away; look which locks are missing, and add them again", n)
		s.logger.Error(err.Error(), "server", node.Options().Addr)
		return nil, err
	}
	return facts, nil
}

// evictions are how many keys each server has thrown away, by its address.
type evictions struct {
	mu    sync.Mutex // guards known
	known map[string]evicted
}

type evicted struct {
	run  string // of the server's process, which counts from nothing
	keys int
}

// more takes in what a server says, and returns how many keys it has thrown away since the last time.
func (e *evictions) more(address string, facts map[string]string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.known[address]
	is := evicted{run: facts["run_id"]}
	is.keys, _ = strconv.Atoi(facts["evicted_keys"])
	if e.known == nil {
		e.known = map[string]evicted{}
	}
	e.known[address] = is
	if was.run != is.run {
		return 0
	}
	return is.keys - was.keys
}

// roundTrip is how long an open connection takes for one, without what only one of two tries has met.
func roundTrip(ctx context.Context, node *redis.Client) (time.Duration, error) {
	shortest := time.Hour
	for range 2 {
		began := time.Now()
		if err := node.Ping(ctx).Err(); err != nil {
			return 0, err
		}
		shortest = min(shortest, time.Since(began))
	}
	return shortest, nil
}

// factsOf takes the answer to INFO apart.
func factsOf(text string) map[string]string {
	facts := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		facts[name] = value
	}
	return facts
}

// checkFacts looks at what a server says of itself.
func checkFacts(facts map[string]string, cluster bool) error {
	major, _, _ := strings.Cut(facts["redis_version"], ".")
	if n, err := strconv.Atoi(major); err != nil || n < minVersion {
		return refusal("the server has version %q; it must be %d.0 or later", facts["redis_version"], minVersion)
	}
	if policy := facts["maxmemory_policy"]; policy != "noeviction" {
		return refusal("maxmemory-policy is %q, which may throw revocations away; set it to noeviction", policy)
	}
	if facts["role"] != "master" {
		return refusal("the server is a replica, which cannot write; give the primary's address, or a Sentinel's with redis+sentinel://")
	}
	if facts["cluster_enabled"] == "1" && !cluster {
		return refusal("the server is a node of a Redis Cluster; write its address with redis+cluster://")
	}
	return nil
}

// checkPermissions tries, in every shard, each command that a script may call: a script that is refused
// one in the middle would have done half of its work.
func (s *Store) checkPermissions(ctx context.Context) error {
	var calls []call
	for shard := range s.shards {
		var keys []string
		for _, name := range []string{"probe:hash", "probe:zset", "probe:stream", "probe:string"} {
			keys = append(keys, keyOf(s.prefix, shard, name))
		}
		calls = append(calls, call{script: s.scripts.probe, shard: shard, echo: "probe", keys: keys})
	}
	for _, r := range s.send(ctx, calls) {
		denied := r.list()
		if r.err != nil && keysDenied.MatchString(r.err.Error()) {
			return refusal("the user may not use the keys %[1]s*; give it the pattern ~%[1]s*, as deploy/redis/users.acl says: %[2]w", s.prefix, r.err)
		}
		if r.err != nil {
			return explain(r.err)
		}
		var names []string
		for denied.left > 0 {
			names = append(names, strings.ToLower(denied.text()))
		}
		if len(names) > 0 {
			slices.Sort(names)
			return refusal("the user may not use %s on the keys %s*; give it what deploy/redis/users.acl has",
				strings.Join(slices.Compact(names), ", "), s.prefix)
		}
	}
	// What is called by itself. A stream that is not there has nothing to read.
	for shard := range s.shards {
		read := redis.XReadArgs{Streams: []string{s.feeds[shard], "$"}, Count: 1, Block: -1}
		err := s.client.XRead(ctx, &read).Err()
		if isWrongType(err) {
			return refusal("%w; %s", err, s.mistyped(ctx, s.feeds[shard:shard+1])[s.feeds[shard]])
		}
		if err != nil && !errors.Is(err, redis.Nil) {
			return explain(err)
		}
	}
	return nil
}

// keysDenied is how servers of different versions say that a user may use a command, and not on these keys.
var keysDenied = regexp.MustCompile(`NOPERM .* access (one of the keys|a key)`)

// refused is a start that would not be safe, or cannot work. Waiting does not help.
type refused struct{ error }

func refusal(format string, args ...any) error { return refused{fmt.Errorf("redis: "+format, args...)} }

// mending says what to do about errors that Redis and its client give at the start.
var mending = []struct{ in, advice string }{
	{"NOAUTH", "the server wants a password; put it into a file, and that into Config.PasswordFile"},
	{"HELLO must be called with the client already authenticated", "the server wants a password; put it into a file, and that into Config.PasswordFile"},
	{"WRONGPASS", "the server knows no such user, or another password; check Config.URL and Config.PasswordFile"},
	{"without any password configured", "the server has no password for the default user; name a user in Config.URL, or set requirepass"},
	{"run the 'select' command", "the user may not choose a database; give it +select, or write /0 in Config.URL"},
	{"NOPERM", "the user may not do that; give it what deploy/redis/users.acl has"},
	{"READONLY", "the server is a replica; give the primary's address, or a Sentinel's with redis+sentinel://"},
	{"MISCONF", "the server cannot save its data and refuses to write; look at its log and its disk"},
	{"cluster support disabled", "the server is no node of a cluster; write its address with redis://"},
	{"first record does not look like a TLS handshake", "the server does not speak TLS there; write redis://, or give its TLS port"},
	{"No such master", "Sentinel does not know that master_name"},
	{"all sentinels specified in configuration are unreachable", "no Sentinel answers, or none knows that master_name"},
	{"certificate required", "the server wants a client's certificate; give Config.CertFile and Config.KeyFile"},
	{"DB index is out of range", "there is no such database; write /0"},
}

// passing says what to do about those that may pass by themselves.
var passing = []struct{ in, advice string }{
	{"LOADING", "the server still reads its data from the disk; wait until it has"},
	{"BUSY ", "somebody's script takes too long on the server; end it with SCRIPT KILL"},
	{"NOREPLICAS", "fewer replicas follow the server than its min-replicas-to-write; bring them back, or lower it"},
	{"CLUSTERDOWN", "the cluster is down, or has slots that no node serves; see what CLUSTER INFO says"},
	{"MASTERDOWN", "the server is a replica that has lost its primary; give the primary's address, or a Sentinel's with redis+sentinel://"},
}

// explain says what is wrong and how to mend it, when New meets an error.
func explain(err error) error {
	if err == nil || errors.As(err, new(refused)) {
		return err
	}
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var verification *tls.CertificateVerificationError
	switch {
	case errors.As(err, &authority):
		return refusal("the server's certificate is not of an authority that is trusted; name it in Config.CAFile: %w", err)
	case errors.As(err, &name), errors.As(err, &verification):
		return refusal("the server's certificate is not right for its address: %w", err)
	}
	for _, m := range mending {
		if strings.Contains(err.Error(), m.in) {
			return refusal("%s: %w", m.advice, err)
		}
	}
	for _, m := range passing {
		if strings.Contains(err.Error(), m.in) {
			return fmt.Errorf("%w: redis: %s: %w", broker.ErrUnavailable, m.advice, err)
		}
	}
	return fmt.Errorf("%w: redis does not answer; is it running, is the address right, does it speak TLS there if it says rediss:// and only then, and does it want a certificate of Config.CertFile? %w",
		broker.ErrUnavailable, err)
}

// checkDrift wants a clock to be no further from this process's than any two may be. took is how long
// the answer took.
func checkDrift(whose string, drift, took time.Duration) error {
	if drift > broker.MaxSkew+took || drift < -broker.MaxSkew {
		return refusal("the clock of %s is %s away from this machine's, and may be %s; synchronize both", whose, drift.Round(time.Millisecond), broker.MaxSkew)
	}
	return nil
}
