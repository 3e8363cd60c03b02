package redis_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
	"github.com/errandhq/errand/store/storetest"
)

const usersFile = "../../deploy/redis/users.acl"

// users is the file as an operator has filled it in, but for the default user, who lets the test in.
func users(t *testing.T, password string) string {
	t.Helper()
	text, err := os.ReadFile(usersFile)
	if err != nil {
		t.Fatal(err)
	}
	zeros, off := strings.Repeat("0", 64), "\nuser default off\n"
	if strings.Count(string(text), "#"+zeros) != 1 || strings.Count(string(text), off) != 1 {
		t.Fatalf("%s has no place for a password, or leaves the default user on", usersFile)
	}
	filled := strings.Replace(string(text), zeros, fmt.Sprintf("%x", sha256.Sum256([]byte(password))), 1)
	return file(t, strings.Replace(filled, off, "\n", 1))
}

// sentinelUser is the line that the same file has for sentinel.conf.
func sentinelUser(t *testing.T, password string) string {
	t.Helper()
	text, err := os.ReadFile(usersFile)
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(text), "#   user errand on #…")
	if !ok {
		t.Fatalf("%s has no user for Sentinels", usersFile)
	}
	line, _, _ = strings.Cut(line, "\n")
	return fmt.Sprintf("user errand on #%x%s", sha256.Sum256([]byte(password)), line)
}

// TestLeastPrivileges runs the suite as the user that the deployment has, and tries what that user may
// not do.
func TestLeastPrivileges(t *testing.T) {
	t.Parallel()
	const password = "correct horse"
	s := start(t, "--include", users(t, password))
	s.Must("ACL", "SETUSER", "admin", "on", ">"+password, "~*", "&*", "+@all")
	as := func(user string) string {
		return fmt.Sprintf("redis://%s:%s@%s/0", user, strings.ReplaceAll(password, " ", "%20"), s.Addr())
	}
	admin := dial(t, as("admin"))
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "default", "off").Err(); err != nil {
		t.Fatal(err)
	}
	config := redis.Config{URL: "redis://errand@" + s.Addr(), PasswordFile: file(t, password)}
	b := backendFor(config, as("admin"), "errand:test", 1)
	storetest.Run(t, b)
	storetest.Board(t, b)

	store := open(t, config)
	if swapped, err := store.Record("keys").Write(t.Context(), []byte("sealed"), 0); err != nil || !swapped {
		t.Errorf("Write: %v, %v", swapped, err)
	}
	end(t, store, completing(begin(t, store).Task.ID))

	errand := dial(t, as("errand")).(*goredis.Client)
	script := func(text string) string {
		sum, err := errand.ScriptLoad(t.Context(), text).Result()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	admin.Set(t.Context(), "other", "secret", 0)
	for _, command := range [][]any{
		{"FLUSHALL"}, {"FLUSHDB"}, {"CONFIG", "GET", "*"}, {"CONFIG", "SET", "maxmemory", "1"}, {"KEYS", "*"}, {"SCAN", "0"}, {"RANDOMKEY"},
		{"SCRIPT", "FLUSH"}, {"SCRIPT", "KILL"}, {"EVAL", "return 1", 0}, {"FUNCTION", "LIST"}, {"FCALL", "f", 0},
		{"SHUTDOWN", "NOSAVE"}, {"ACL", "LIST"}, {"ACL", "SETUSER", "x", "on"}, {"MONITOR"}, {"SAVE"}, {"BGSAVE"}, {"REPLICAOF", "NO", "ONE"},
		{"CLIENT", "KILL", "ID", "1"}, {"CLIENT", "LIST"}, {"PUBLISH", "c", "m"}, {"SUBSCRIBE", "c"}, {"MIGRATE", "h", "1", "errand:x", 0, 1},
		{"RENAME", "errand:x", "errand:y"}, {"DUMP", "errand:x"}, {"EXPIRE", "errand:x", 1}, {"MULTI"}, {"CLUSTER", "RESET"}, {"MODULE", "LIST"},
		{"GET", "other"}, {"SET", "other", "x"}, {"DEL", "other"}, {"HSET", "other", "a", "b"}, {"XREAD", "STREAMS", "other", "0"},
		{"EVALSHA", script("return redis.call('GET', KEYS[1])"), 1, "other"},
		{"EVALSHA", script("return redis.call('GET', 'other')"), 0},
		{"EVALSHA", script("return redis.call('FLUSHALL')"), 0},
		{"EVALSHA", script("return redis.call('KEYS', '*')"), 0},
	} {
		err := errand.Do(t.Context(), command...).Err()
		if err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "user executing the script") {
			t.Errorf("%v: %v; want NOPERM", command, err)
		}
	}
	if got := admin.Get(t.Context(), "other").Val(); got != "secret" {
		t.Errorf("the other key has become %q", got)
	}
	if _, err := store.Lookup(t.Context(), broker.Ref{Task: begin(t, store).Task.ID}); err != nil {
		t.Errorf("Lookup after all that: %v", err)
	}
}

// TestLeastPrivilegesOnACluster does the same with a cluster, also while it moves a shard to another node.
func TestLeastPrivilegesOnACluster(t *testing.T) {
	t.Parallel()
	const password = "correct horse"
	nodes := redistest.StartCluster(t, "--include", users(t, password))
	url := strings.Replace(redistest.ClusterURL(nodes), "://", "://errand@", 1)
	store := open(t, redis.Config{URL: url, PasswordFile: file(t, password)}.Patient())
	var tasks []broker.Task
	for shard := range redis.ClusterShards {
		reply, err := store.Grant(t.Context(), in(shard))
		if err != nil {
			t.Fatal(err)
		}
		tasks = append(tasks, reply.Task)
	}
	end(t, store, broker.Ending{Kind: broker.TargetSelector, Selector: broker.Selector{Audience: "b"}})
	if _, err := first(t.Context(), store, broker.Position{}); err != nil {
		t.Fatal(err)
	}
	slot := nodes[0].Must("CLUSTER", "KEYSLOT", "{p00}")
	n, err := strconv.Atoi(slot)
	if err != nil {
		t.Fatal(err)
	}
	from, to := nodes[n*len(nodes)/16384], nodes[(n*len(nodes)/16384+1)%len(nodes)]
	look := func(when string) {
		t.Helper()
		for i, task := range tasks {
			_, err := store.Lookup(t.Context(), broker.Ref{Task: task.ID})
			if err != nil && i > 0 || err != nil && (!errors.Is(err, broker.ErrUnavailable) || strings.Contains(err.Error(), "NOPERM")) {
				t.Errorf("a look-up in shard %d %s: %v", i, when, err)
			}
		}
	}
	toID := to.Must("CLUSTER", "MYID")
	to.Must("CLUSTER", "SETSLOT", slot, "IMPORTING", from.Must("CLUSTER", "MYID"))
	from.Must("CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	look("before a key has moved")
	for _, key := range strings.Fields(from.Must("CLUSTER", "GETKEYSINSLOT", slot, "1000")) {
		from.Must("MIGRATE", "127.0.0.1", strconv.Itoa(to.Port()), key, "0", "5000")
		look("while keys move")
	}
	for _, node := range nodes {
		node.Must("CLUSTER", "SETSLOT", slot, "NODE", toID)
	}
	eventually(t, "calls in the shard that has moved", func() bool {
		_, err := store.Lookup(t.Context(), broker.Ref{Task: tasks[0].ID})
		return err == nil
	})
	for _, task := range tasks {
		end(t, store, completing(task.ID))
	}
	for _, node := range nodes {
		if denied := node.Must("ACL", "LOG"); denied != "" {
			t.Errorf("the user was refused something:\n%s", denied)
		}
	}
}

// TestBeyondTheFile: what the file's comments say is to be changed for another prefix or database, the errors say, too.
func TestBeyondTheFile(t *testing.T) {
	t.Parallel()
	s := start(t, "--include", users(t, "hunter2"))
	password := file(t, "hunter2")
	for want, c := range map[string]redis.Config{
		"give it the pattern ~other:*, as": {URL: "redis://errand@" + s.Addr(), Prefix: "other:"},
		"give it +select, or":              {URL: "redis://errand@" + s.Addr() + "/3"},
	} {
		c.PasswordFile = password
		if _, err := redis.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

// TestEveryCommandIsTried holds three lists together: what scripts call, what is tried at the start, and
// what the deployment's user may do.
func TestEveryCommandIsTried(t *testing.T) {
	called, tried := map[string]bool{}, map[string]bool{}
	entries, err := os.ReadDir("scripts")
	if err != nil {
		t.Fatal(err)
	}
	parts, err := os.ReadDir("scripts/lib")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, "scripts/"+e.Name())
	}
	for _, e := range parts {
		names = append(names, "scripts/lib/"+e.Name())
	}
	calls, tries := regexp.MustCompile(`redis\.p?call\('([A-Z]+)'`), regexp.MustCompile(`\{'([A-Z]+)'`)
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the folder
		}
		for _, m := range calls.FindAllStringSubmatch(string(text), -1) {
			called[m[1]] = true
		}
		if strings.HasSuffix(name, "probe.lua") {
			for _, m := range tries.FindAllStringSubmatch(string(text), -1) {
				tried[m[1]] = true
			}
		}
	}
	if len(called) < 15 {
		t.Fatalf("found only %v", called)
	}
	text, err := os.ReadFile(usersFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rules, _ := strings.Cut(string(text), "\nuser errand ")
	rules, _, _ = strings.Cut(rules, "\n")
	allowed := strings.Fields(rules)
	for command := range called {
		if !tried[command] {
			t.Errorf("a script calls %s, and probe.lua does not try it", command)
		}
	}
	for command := range tried {
		if !called[command] && command != "DEL" {
			t.Errorf("probe.lua tries %s, which no script calls", command)
		}
		allows := func(rule string) bool {
			name, _, _ := strings.Cut(rule, "|") // without a subcommand
			return name == "+"+strings.ToLower(command)
		}
		if !slices.ContainsFunc(allowed, allows) {
			t.Errorf("%s does not allow %s", usersFile, command)
		}
	}
}
