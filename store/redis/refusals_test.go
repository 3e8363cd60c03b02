package redis_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// clusterOfOne is a node that has all slots.
func clusterOfOne(t *testing.T, args ...string) *server {
	t.Helper()
	s := start(t, append([]string{"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-announce-ip", "127.0.0.1",
		"--cluster-port", fmt.Sprint(redistest.FreePort(t))}, args...)...)
	s.Must("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	eventually(t, "the cluster is whole", func() bool { return strings.Contains(s.Must("CLUSTER", "INFO"), "cluster_state:ok") })
	return s
}

// TestServerRefuses has servers that answer and do nothing. A call is refused, and has not happened; a start says what to do
// about it; and all works again once it is done.
func TestServerRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		says, advice string
		args         []string
		spoil        func(*server)
		mend         func(*server)
	}{
		{"LOADING", "wait until it has", []string{"--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024"}, reload, func(s *server) {
			_, _ = s.Do("CONFIG", "SET", "key-load-delay", "0")
		}},
		{"MISCONF", "look at its log and its disk", []string{"--save", "3600 1000000"}, func(s *server) {
			if err := os.Mkdir(dump(s), 0o700); err != nil { // where a file should be
				t.Fatal(err)
			}
			s.Must("BGSAVE")
			eventually(t, "it cannot save", func() bool { return strings.Contains(s.Must("INFO", "persistence"), "rdb_last_bgsave_status:err") })
		}, func(s *server) { s.Must("CONFIG", "SET", "save", "") }},
		{"NOREPLICAS", "min-replicas-to-write", nil, func(s *server) { s.Must("CONFIG", "SET", "min-replicas-to-write", "1") },
			func(s *server) { s.Must("CONFIG", "SET", "min-replicas-to-write", "0") }},
		{"BUSY", "end it with SCRIPT KILL", []string{"--busy-reply-threshold", "1"}, func(s *server) {
			go func() { _, _ = s.Do("EVAL", "while true do end", "0") }()
			eventually(t, "it is busy", func() bool { _, err := s.Do("PING"); return err != nil })
		}, func(s *server) { s.Must("SCRIPT", "KILL") }},
	} {
		t.Run(test.says, func(t *testing.T) {
			t.Parallel()
			s := start(t, test.args...)
			store := s.open(t, redis.Config{}.Patient())
			kept := begin(t, store).Task
			test.spoil(s)
			req := beginning()
			eventually(t, "it says so", func() bool {
				_, err := store.Grant(t.Context(), req)
				return err != nil && strings.Contains(err.Error(), test.says)
			})
			_, errGrant := store.Grant(t.Context(), req)
			_, errEnd := store.End(t.Context(), []broker.Ending{completing(kept.ID)})
			for what, err := range map[string]error{"Grant": errGrant, "End": errEnd} {
				if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("%s: %v; want ErrUnavailable with %s", what, err, test.says)
				}
			}
			if _, err := redis.New(t.Context(), redis.Config{URL: s.URL()}.Patient()); err == nil || !strings.Contains(err.Error(), test.advice) {
				t.Errorf("New: %v; want %q", err, test.advice)
			}
			test.mend(s)
			eventually(t, "it works again", func() bool {
				_, err := store.Lookup(t.Context(), broker.Ref{Task: kept.ID})
				return err == nil
			})
			if _, err := store.Lookup(t.Context(), broker.Ref{Task: req.Task}); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("the task that was refused: %v; want ErrNotFound", err)
			}
			if !end(t, store, completing(kept.ID)).Receipt.First {
				t.Error("an end that was refused has happened")
			}
		})
	}
}

// dump is where a server saves its data.
func dump(s *server) string {
	_, folder, _ := strings.Cut(s.Must("CONFIG", "GET", "dir"), "\n")
	return filepath.Join(folder, "dump.rdb")
}

// reload makes a server read its data for a while.
func reload(s *server) {
	_, err := s.client.Pipelined(s.t.Context(), func(p goredis.Pipeliner) error {
		for i := range 3000 {
			p.Set(s.t.Context(), fmt.Sprint("somebody's:", i), strings.Repeat("x", 100), 0)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Must("CONFIG", "SET", "key-load-delay", "1000")
	go func() { _, _ = s.Do("DEBUG", "RELOAD") }()
	eventually(s.t, "it reads its data", func() bool { _, err := s.Do("PING"); return err != nil })
}

// TestNewSaysWhatIsDown has servers that a store cannot begin with, though they run.
func TestNewSaysWhatIsDown(t *testing.T) {
	t.Parallel()
	torn := clusterOfOne(t)
	torn.Must("CLUSTER", "DELSLOTS", "0")
	eventually(t, "a slot is missing", func() bool { return strings.Contains(torn.Must("CLUSTER", "INFO"), "cluster_state:fail") })
	lost := start(t)
	lost.Must("CONFIG", "SET", "replica-serve-stale-data", "no")
	lost.Must("REPLICAOF", "127.0.0.1", fmt.Sprint(redistest.FreePort(t)))
	for url, want := range map[string]string{
		"redis+cluster://" + torn.Addr(): "CLUSTER INFO",
		lost.URL():                       "a replica that has lost its primary",
	} {
		if _, err := redis.New(t.Context(), redis.Config{URL: url}.Patient()); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want ErrUnavailable with %q", url, err, want)
		}
	}
}
