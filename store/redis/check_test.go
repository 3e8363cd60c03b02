package redis_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// TestNewRefuses has what a store must not start with. Each error says what is wrong and what to do.
func TestNewRefuses(t *testing.T) {
	s := start(t)
	s.open(t, redis.Config{Shards: 4})
	s.client.HSet(t.Context(), "torn:{p00}:meta", "epoch", "1", "shards", "1", "deployment", "errand", "last", time.Now().Add(time.Hour).UnixMilli())
	locked := start(t)
	locked.Must("CONFIG", "SET", "requirepass", "hunter2")
	replica := start(t, "--replicaof", "127.0.0.1", fmt.Sprint(s.Port()))
	evicting := start(t, "--maxmemory-policy", "allkeys-lru")
	node := start(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", fmt.Sprint(redistest.FreePort(t)))
	wrong, good, empty := file(t, "hunter3\n"), file(t, "hunter2\n"), file(t, "\n")
	saying := func(facts string) string {
		return "redis://" + between(t, s.Addr(), func() func([]byte) ([]byte, bool) {
			return func(sent []byte) ([]byte, bool) {
				if bytes.Contains(bytes.ToLower(sent), []byte("\r\ninfo\r\n")) {
					return []byte(bulk(facts)), false
				}
				return nil, true
			}
		})
	}
	const rest = "\r\nmaxmemory_policy:noeviction\r\nrole:master\r\ncluster_enabled:0\r\n"
	user := func(s *server, who, rules string) string {
		s.Must(append([]string{"ACL", "SETUSER", who, "on", ">hunter2", "~*"}, strings.Fields(rules)...)...)
		return strings.Replace(s.URL(), "://", "://"+who+"@", 1)
	}
	for _, test := range []struct {
		name   string
		config redis.Config
		want   string
	}{
		{"no URL", redis.Config{}, "Config.URL"},
		{"another protocol", redis.Config{URL: "http://127.0.0.1"}, "redis://"},
		{"another kind", redis.Config{URL: "redis+ring://127.0.0.1"}, "Config.URL must begin with"},
		{"a URL that is none", redis.Config{URL: "redis://u:hunter2@127.0.0.1:port/0"}, "Config.URL cannot be read; write it as"},
		{"a password with a slash", redis.Config{URL: "redis://u:a/hunter2@127.0.0.1"}, "%2F"},
		{"a password that looks like a port and a database", redis.Config{URL: "redis://u:6379/hunter2@127.0.0.1"}, "%2F"},
		{"a password with a question mark", redis.Config{URL: "redis+cluster://u:6379?hunter2@127.0.0.1"}, "%3F"},
		{"a password with a hash", redis.Config{URL: "redis+sentinel://u:6379#hunter2@127.0.0.1"}, "%23"},
		{"a password with a percent sign", redis.Config{URL: "redis://u:hunter2%hunter2@127.0.0.1"}, "%25"},
		{"a password in the place of a port", redis.Config{URL: "redis://u:hunter2"}, "Config.PasswordFile"},
		{"a password with a slash, and a socket", redis.Config{URL: "unix://u:/hunter2@/run/redis"}, "%2F"},
		{"no verification", redis.Config{URL: "rediss://127.0.0.1?skip_verify=true"}, "CAFile"},
		{"no master name", redis.Config{URL: "redis+sentinel://127.0.0.1:1"}, "master_name"},
		{"nobody there", redis.Config{URL: "redis://127.0.0.1:1"}, "is it running"},
		{"no sentinel there", redis.Config{URL: "redis+sentinel://127.0.0.1:1?master_name=m"}, "Sentinel"},
		{"another number of shards", redis.Config{URL: s.URL(), Shards: 1}, "has 4 shards"},
		{"another deployment", redis.Config{URL: s.URL(), Shards: 4, Deployment: "staging"}, `deployment "errand"`},
		{"too many shards", redis.Config{URL: s.URL(), Shards: broker.MaxShards + 1}, "Config.Shards"},
		{"less than no shards", redis.Config{URL: s.URL(), Shards: -1}, "Config.Shards"},
		{"braces", redis.Config{URL: s.URL(), Prefix: "{x}"}, "Config.Prefix"},
		{"eviction", redis.Config{URL: evicting.URL()}, "noeviction"},
		{"an old version", redis.Config{URL: saying("redis_version:6.2.14" + rest), Shards: 4}, `the server has version "6.2.14"; it must be 7.0 or later`},
		{"no version", redis.Config{URL: saying("redis_mode:standalone" + rest), Shards: 4}, `the server has version ""`},
		{"a replica", redis.Config{URL: replica.URL()}, "the server is a replica"},
		{"a node of a cluster", redis.Config{URL: node.URL()}, "redis+cluster://"},
		{"no cluster", redis.Config{URL: strings.Replace(s.URL(), "redis", "redis+cluster", 1)}, "redis://"},
		{"no such database", redis.Config{URL: s.URL() + "/99"}, "/0"},
		{"no password", redis.Config{URL: locked.URL()}, "Config.PasswordFile"},
		{"a wrong password", redis.Config{URL: locked.URL(), PasswordFile: wrong}, "Config.PasswordFile"},
		{"no file", redis.Config{URL: locked.URL(), PasswordFile: good + "x"}, "no such file"},
		{"an empty file", redis.Config{URL: locked.URL(), PasswordFile: empty}, "one line"},
		{"no file for Sentinel", redis.Config{URL: "redis+sentinel://127.0.0.1:1?master_name=m", SentinelPasswordFile: good + "x"}, "Config.SentinelPasswordFile"},
		{"two passwords", redis.Config{URL: strings.Replace(locked.URL(), "://", "://:hunter2@", 1), PasswordFile: good}, "PasswordFile"},
		{"a user without INFO", redis.Config{URL: user(s, "a", "+@all -info"), PasswordFile: good}, "'info'"},
		{"a user without scripts", redis.Config{URL: user(s, "b", "+@all -evalsha"), PasswordFile: good}, "'evalsha'"},
		{"a user without XREAD", redis.Config{URL: user(s, "c", "+@all -xread"), PasswordFile: good, Shards: 4}, "'xread'"},
		{"a user without TYPE", redis.Config{URL: user(s, "f", "+@all -type"), PasswordFile: good, Shards: 4}, "may not use type on"},
		{"a user without two commands", redis.Config{URL: user(s, "d", "+@all -xadd -zrem"), PasswordFile: good, Shards: 4}, "may not use xadd, zrem on"},
		{"a user for other keys", redis.Config{URL: user(s, "e", "+@all resetkeys ~other:*"), PasswordFile: good, Shards: 4}, "may not use the keys errand:*; give it the pattern ~errand:*"},
		{"a user for one database", redis.Config{URL: user(s, "g", "+@all -select") + "/3", PasswordFile: good}, "may not choose a database; give it +select, or write /0 in Config.URL"},
		{"a clock far ahead", redis.Config{URL: s.URL(), Shards: 4, Now: func() time.Time { return time.Now().Add(-7 * time.Second) }}, "clock of redis is 7"},
		{"a clock far behind", redis.Config{URL: s.URL(), Shards: 4, Now: func() time.Time { return time.Now().Add(7 * time.Second) }}, "clock of redis is -"},
		{"data of the future", redis.Config{URL: s.URL(), Prefix: "torn:"}, "set the clock if it is behind; if it was ahead before and is right now, wait until then"},
	} {
		t.Run(test.name, func(t *testing.T) {
			store, err := redis.New(t.Context(), test.config)
			if err == nil {
				_ = store.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v; want an error with %q", err, test.want)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(fmt.Sprint(redis.CheckURL(test.config.URL)), "hunter2") {
				t.Fatalf("the error has the password: %v", err)
			}
		})
	}
	most := s.open(t, redis.Config{Prefix: "most:", Shards: broker.MaxShards})
	if update, err := first(t.Context(), most, broker.Position{}); err != nil || len(update.Position.Numbers) != broker.MaxShards {
		t.Errorf("the most shards: %+v, error %v", update.Position, err)
	}
	within := redis.Config{URL: s.URL(), Shards: 4, Now: func() time.Time { return time.Now().Add(-4 * time.Second) }}
	begin(t, s.open(t, within))
	locked.open(t, redis.Config{PasswordFile: good})
	for _, version := range []string{"7.0.0", "8.2.1", "10.0.0"} {
		s.open(t, redis.Config{URL: saying("redis_version:" + version + rest), Shards: 4})
	}
}

// TestNewPassword replaces the password: connections that are made from then on log in with it.
func TestNewPassword(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.Must("ACL", "SETUSER", "errand", "on", ">one", "~*", "&*", "+@all")
	password := file(t, "one")
	store := s.open(t, redis.Config{URL: "redis://errand@" + s.Addr(), PasswordFile: password}.Patient())
	s.Must("ACL", "SETUSER", "errand", "resetpass", ">two")
	renew := func() {
		s.Must("CLIENT", "KILL", "USER", "errand")
		eventually(t, "the connections have gone", func() bool { return !strings.Contains(s.Must("CLIENT", "LIST"), "user=errand") })
	}
	renew()
	for range 2 { // the first may find out that its connection has gone
		_, _ = store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(0)})
	}
	if _, err := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(0)}); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "WRONGPASS") {
		t.Errorf("with the old password: %v; want ErrUnavailable with WRONGPASS", err)
	}
	if err := os.WriteFile(password, []byte("two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a look-up with the new password", func() bool {
		_, err := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(0)})
		return errors.Is(err, broker.ErrNotFound)
	})
	renew()
	eventually(t, "a begin over another new connection", func() bool {
		_, err := store.Grant(t.Context(), beginning())
		return err == nil
	})
}

// file writes one that only its owner may read.
func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestNewSaysThatTheServerIsFarAway, and is silent where it is not.
func TestNewSaysThatTheServerIsFarAway(t *testing.T) {
	s := start(t)
	warns := func(late time.Duration) bool {
		t.Helper()
		proxy := redistest.Between(t, s.Addr())
		proxy.Set(redistest.Fault{Latency: late}) // each way
		var log bytes.Buffer
		store, err := redis.New(t.Context(), redis.Config{URL: proxy.URL(), Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(log.String(), "far away")
	}
	if !warns(redis.Far/2 + time.Millisecond) {
		t.Error("nothing is said of a server that is too far away")
	}
	for try := 1; warns(0); try++ { // a busy machine makes it seem far
		if try == 10 {
			t.Fatal("a server that is near is said to be far away")
		}
	}
}

// TestNewSaysThatARestartLosesData, and is silent where it does not.
func TestNewSaysThatARestartLosesData(t *testing.T) {
	for appendonly, said := range map[string]bool{"no": true, "yes": false} {
		t.Run(appendonly, func(t *testing.T) {
			s := start(t, "--appendonly", appendonly)
			var log bytes.Buffer
			store, err := redis.New(t.Context(), redis.Config{URL: s.URL(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(log.String(), "appendonly is no") != said {
				t.Errorf("the log is %q", log.String())
			}
		})
	}
}

// TestEvictionLater has a server that begins to evict after the start: the feed says so and ends, whoever follows it anew
// hears the same, and all is well when it has been mended.
func TestEvictionLater(t *testing.T) {
	t.Parallel()
	s := start(t)
	var log lines
	store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
	followed := make(chan error, 1)
	following := make(chan bool, 1)
	go func() {
		followed <- store.Watch(t.Context(), broker.Position{}, func(broker.Update) error {
			select {
			case following <- true:
			default:
			}
			return nil
		})
	}()
	<-following
	refuses := func(when string, err error, why string) {
		t.Helper()
		if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v; want ErrUnavailable with %q", when, err, why)
		}
	}
	works := func() {
		t.Helper()
		if _, err := first(t.Context(), store, broker.Position{}); err != nil {
			t.Errorf("after it has been mended: %v", err)
		}
	}
	s.Must("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	select {
	case err := <-followed:
		refuses("who follows the feed", err, "set it to noeviction")
	case <-time.After(time.Minute):
		t.Fatal("the feed goes on")
	}
	_, err := first(t.Context(), store, broker.Position{})
	refuses("who follows it anew", err, "set it to noeviction")
	s.Must("CONFIG", "SET", "maxmemory-policy", "noeviction")
	works()

	s.Must("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
	s.Must("SET", "somebody's", "text")
	s.Must("CONFIG", "SET", "maxmemory", "1")
	eventually(t, "a key is thrown away", func() bool { return !strings.Contains(s.Must("INFO", "stats"), "evicted_keys:0\r") })
	s.Must("CONFIG", "SET", "maxmemory", "0")
	s.Must("CONFIG", "SET", "maxmemory-policy", "noeviction")
	_, err = first(t.Context(), store, broker.Position{})
	refuses("after keys were thrown away", err, "look which locks are missing")
	if n := log.with("look which locks are missing"); n != 1 {
		t.Errorf("the log says so %d times; want once", n)
	}
	eventually(t, "the feed of what is left, or of a new data set", func() bool {
		_, err := first(t.Context(), store, broker.Position{})
		return err == nil
	})
}
