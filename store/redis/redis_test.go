package redis_test

import (
	"context"
	"flag"
	"log/slog"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"go.uber.org/goleak"

	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = p.Value.Set("8") // they wait for servers more than they work
	}
	logging.Disable() // of the clients that are not a store's
	goleak.VerifyTestMain(m)
}

// server is a redis-server of a test's own.
type server struct {
	*redistest.Server
	t      testing.TB
	client *goredis.Client // for what a store would never do
}

func start(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{Server: redistest.Start(t, args...), t: t}
	s.client = goredis.NewClient(&goredis.Options{Addr: s.Addr(), MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = s.client.Close() })
	return s
}

// open makes a store on a server.
func (s *server) open(t testing.TB, c redis.Config) *redis.Store {
	t.Helper()
	if c.URL == "" {
		c.URL = s.URL()
	}
	return open(t, c)
}

// open makes a store that ends with the test.
func open(t testing.TB, c redis.Config) *redis.Store {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	store, err := redis.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// eventually waits for something that must happen soon.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// keys lists what there is, by a pattern in which only * is special.
func (s *server) keys(pattern string) []string {
	s.t.Helper()
	keys, err := s.client.Keys(context.Background(), escape.Replace(pattern)).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return keys
}
