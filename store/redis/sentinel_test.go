package redis_test

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// sentinel starts one that watches over a primary, and returns its address. It is told more lines of configuration.
func sentinel(t *testing.T, primary *server, more ...string) string {
	t.Helper()
	binary, err := exec.LookPath("redis-sentinel")
	if err != nil {
		t.Fatalf("install redis-sentinel: %v", err)
	}
	port := redistest.FreePort(t)
	config := file(t, fmt.Sprintf(`port %d
bind 127.0.0.1
dir %s
sentinel monitor errand 127.0.0.1 %d 1
sentinel down-after-milliseconds errand 300
sentinel failover-timeout errand 2000
%s
`, port, filepath.Dir(file(t, "")), primary.Port(), strings.Join(more, "\n")))
	cmd := exec.Command(binary, config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// TestSentinelPassword has a Sentinel that wants one, and a primary that wants none.
func TestSentinelPassword(t *testing.T) {
	t.Parallel()
	address := sentinel(t, start(t), "requirepass hunter2")
	c := redis.Config{URL: "redis+sentinel://" + address + "?master_name=errand"}.Patient()
	eventually(t, "the Sentinel is up", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	for _, password := range []string{"", "hunter3"} {
		if c.SentinelPasswordFile = ""; password != "" {
			c.SentinelPasswordFile = file(t, password)
		}
		if store, err := redis.New(t.Context(), c); err == nil {
			_ = store.Close()
			t.Errorf("with the password %q: it was let in", password)
		}
	}
	c.SentinelPasswordFile = file(t, "hunter2\n")
	begin(t, open(t, c))
}

// TestFailover kills the primary under a store that asks Sentinel: calls fail in time, and go on at the
// replica that takes over, which has never seen a script.
func TestFailover(t *testing.T) {
	t.Parallel()
	const password, atSentinel = "hunter2", "hunter3"
	acl := users(t, password)
	primary := start(t, "--include", acl)
	replica := start(t, "--include", acl, "--replicaof", "127.0.0.1", fmt.Sprint(primary.Port()), "--repl-diskless-sync-delay", "0")
	eventually(t, "the replica follows", func() bool { return strings.Contains(replica.Must("INFO", "replication"), "master_link_status:up") })
	address := sentinel(t, primary, sentinelUser(t, atSentinel))
	asked := goredis.NewSentinelClient(&goredis.Options{Addr: address})
	t.Cleanup(func() { _ = asked.Close() })
	eventually(t, "the Sentinel knows the replica", func() bool {
		replicas, err := asked.Replicas(t.Context(), "errand").Result()
		return err == nil && len(replicas) == 1 && replicas[0]["master-link-status"] == "ok"
	})

	store := open(t, redis.Config{
		URL:          "redis+sentinel://errand@" + address + "?master_name=errand&username=errand",
		PasswordFile: file(t, password), SentinelPasswordFile: file(t, atSentinel),
	})
	kept := begin(t, store).Task
	ended := begin(t, store)
	end(t, store, completing(ended.Task.ID))
	before, err := first(t.Context(), store, broker.Position{})
	if err != nil {
		t.Fatal(err)
	}
	offset := func(s *server) string {
		_, rest, _ := strings.Cut(s.Must("INFO", "replication"), "master_repl_offset:")
		line, _, _ := strings.Cut(rest, "\r\n")
		return line
	}
	eventually(t, "the replica has all of it", func() bool { return offset(replica) == offset(primary) })

	replica.Must("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	primary.Kill()
	eventually(t, "a begin at the new primary", func() bool {
		began := time.Now()
		_, err := store.Grant(t.Context(), beginning())
		if took := time.Since(began); took > time.Second+slack {
			t.Errorf("a call took %s: %v", took, err)
		}
		return err == nil
	})
	if record, err := store.Lookup(t.Context(), broker.Ref{Grant: ended.Grants[0].ID}); err != nil || record.Task.State != broker.Completed {
		t.Errorf("the ended task: %+v, error %v", record.Task, err)
	}
	if receipt := end(t, store, completing(kept.ID)).Receipt; !receipt.First {
		t.Errorf("the end of the other: %+v; want the first", receipt)
	}
	if _, err := first(t.Context(), store, before.Position); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("the feed of a new primary that evicts: %v; want ErrUnavailable with what to do", err)
	}
	replica.Must("CONFIG", "SET", "maxmemory-policy", "noeviction")
	after, err := first(t.Context(), store, before.Position)
	if err != nil || after.Position.Epoch != before.Position.Epoch || len(after.Entries) != 1 || after.Now.Before(before.Now) {
		t.Errorf("the feed goes on with %+v, error %v; want one entry more", after, err)
	}
	if n := strings.Count(replica.Must("CLIENT", "LIST"), "user=errand"); n == 0 {
		t.Error("nobody has logged in at the new primary as errand")
	}
	cmd := goredis.NewCmd(t.Context(), "acl", "log")
	if err := asked.Process(t.Context(), cmd); err != nil {
		t.Error(err)
	} else if denied, _ := cmd.Slice(); len(denied) != 0 {
		t.Errorf("the Sentinel has refused the user something: %v", denied)
	}
	if log := replica.Must("ACL", "LOG"); log != "" {
		t.Errorf("the new primary has refused the user something: %s", log)
	}
}
