package redis_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
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
