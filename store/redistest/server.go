package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a server may take to come up.
const patience = 10 * time.Second

// Server is a redis-server process.
type Server struct {
	t    testing.TB
	port int
	args []string
	log  string
	cmd  *exec.Cmd
	dead chan struct{}
}

// Start starts a server that keeps nothing on the disk unless args, as on the command line of
// redis-server, say so. It ends with the test.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{t: t, port: FreePort(t), log: filepath.Join(dir, "log")}
	s.args = append([]string{
		"--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--dir", dir, "--save", "", "--appendonly", "no", "--logfile", s.log,
	}, args...)
	s.Run()
	t.Cleanup(s.Kill)
	return s
}

// FreePort returns a port of the loopback address that nobody listens on, below those that the kernel gives to
// connections: one of these could have the port by the time somebody listens.
func FreePort(t testing.TB) int {
	t.Helper()
	var err error
	for range 100 {
		port := 10_000 + rand.IntN(22_000)
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal(err)
	return 0
}

// Run starts the process, again after Kill, and waits until it answers.
func (s *Server) Run() {
	s.t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		s.t.Fatalf("%v; install redis-server 7.0 or later: apt-get install redis-server", err)
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
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		answer, err := s.Do("PING")
		if err == nil && answer == "PONG" {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(s.log)
			s.t.Fatalf("redis-server does not answer: %q, %v\n%s", answer, err, log)
		}
	}
}

// Kill ends the process at once, as kill -9 does, and waits until it is gone. It may be called again.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.dead
}

// Pause stops the process where it is; its connections stay open.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets it go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Addr is where the server listens.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL is the same as a store's address.
func (s *Server) URL() string { return "redis://" + s.Addr() }

// Port is the same as a number.
func (s *Server) Port() int { return s.port }

// Must is Do for what has to work.
func (s *Server) Must(command ...string) string {
	s.t.Helper()
	answer, err := s.Do(command...)
	if err != nil {
		s.t.Fatalf("%v: %v", command, err)
	}
	return answer
}

// Do sends one command on a connection of its own and returns the answer as text; a list is its
// elements, one a line.
func (s *Server) Do(command ...string) (string, error) {
	conn, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(command))
	for _, word := range command {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return "", err
	}
	return read(bufio.NewReader(conn))
}

// read reads one answer of the RESP2 protocol.
func read(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", errors.New(rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return "", err
	}
	switch kind {
	case '$':
		text := make([]byte, n+len("\r\n"))
		_, err := io.ReadFull(r, text)
		return string(text[:n]), err
	case '*':
		items := make([]string, n)
		for i := range items {
			if items[i], err = read(r); err != nil {
				return "", err
			}
		}
		return strings.Join(items, "\n"), nil
	}
	return "", fmt.Errorf("an answer that begins with %q", kind)
}
