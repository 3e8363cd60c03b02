package redis_test

import (
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"go.uber.org/goleak"

	"github.com/errandhq/errand/store/redis"
)

func TestMain(m *testing.M) {
	logging.Disable() // of the clients that wait for a server
	goleak.VerifyTestMain(m)
}

// server is a redis-server of a test's own.
type server struct {
	t    testing.TB
	port int
	args []string
	cmd  *exec.Cmd
	dead chan struct{}
}

// start starts a server on a free port, and ends it with the test.
func start(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{t: t, port: freePort(t)}
	dir := t.TempDir()
	s.args = append([]string{
		"--bind", "127.0.0.1", "--port", fmt.Sprint(s.port), "--dir", dir, "--save", "", "--appendonly", "no",
		"--logfile", filepath.Join(dir, "log"),
	}, args...)
	s.run()
	t.Cleanup(s.stop)
	return s
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// run starts the process and waits until it answers.
func (s *server) run() {
	s.t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		s.t.Fatalf("install redis-server, 7.0 or later: %v", err)
	}
	s.cmd = exec.Command(binary, s.args...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	dead, cmd := make(chan struct{}), s.cmd
	s.dead = dead
	go func() {
		defer close(dead)
		_ = cmd.Wait()
	}()
	c := s.client()
	defer func() { _ = c.Close() }()
	eventually(s.t, "redis-server answers", func() bool { return c.Ping(s.t.Context()).Err() == nil })
}

// stop kills the process.
func (s *server) stop() {
	_ = s.cmd.Process.Kill()
	<-s.dead
}

func (s *server) url() string { return fmt.Sprintf("redis://127.0.0.1:%d/0", s.port) }

// client is for what a store would never do.
func (s *server) client() *goredis.Client {
	return goredis.NewClient(&goredis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", s.port), MaxRetries: -1, DialerRetries: 1})
}

// direct makes such a client for the length of a test.
func (s *server) direct() *goredis.Client {
	c := s.client()
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// eventually waits for something that must happen soon.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// open makes a store on a server.
func (s *server) open(t testing.TB, c redis.Config) *redis.Store {
	t.Helper()
	c.URL, c.Logger = s.url(), slog.New(slog.DiscardHandler)
	store, err := redis.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// pause stops the process where it is; its connections stay open.
func (s *server) pause() { s.signal(syscall.SIGSTOP) }

func (s *server) resume() { s.signal(syscall.SIGCONT) }

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}
