package redistest_test

import (
	"bufio"
	"net"
	"testing"
	"time"

	"github.com/errandhq/errand/store/redistest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServerLosesWhatItDoesNotKeep(t *testing.T) {
	s := redistest.Start(t)
	s.Must("SET", "a", "1")
	if got := s.Must("GET", "a"); got != "1" {
		t.Fatalf("got %q", got)
	}
	s.Kill()
	if answer, err := s.Do("PING"); err == nil {
		t.Fatalf("a dead server answers %q", answer)
	}
	s.Run()
	if got := s.Must("EXISTS", "a"); got != "0" {
		t.Fatalf("got %q", got)
	}
}

// TestFreePort: it is none that a connection of anybody's could have by the time it is used.
func TestFreePort(t *testing.T) {
	for range 20 {
		if port := redistest.FreePort(t); port < 1024 || port >= 32768 {
			t.Fatalf("%d is among the ports that connections are given", port)
		}
	}
}

// line is a connection that sends a command a line.
type line struct {
	net.Conn
	answers *bufio.Reader
}

func dial(t *testing.T, p *redistest.Proxy) line {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return line{c, bufio.NewReader(c)}
}

// hears reports whether a PING is answered in time.
func (l line) hears(t *testing.T, wait time.Duration) bool {
	t.Helper()
	if _, err := l.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	return l.waits(t, wait)
}

func (l line) waits(t *testing.T, wait time.Duration) bool {
	t.Helper()
	if err := l.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	_, err := l.answers.ReadString('\n')
	return err == nil
}

const (
	long  = 5 * time.Second
	short = 50 * time.Millisecond
)

func TestProxyFaults(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.Between(t, s.Addr())
	c := dial(t, p)
	if !c.hears(t, long) {
		t.Fatal("no answer without a fault")
	}
	p.Set(redistest.Fault{Silent: true})
	if c.hears(t, short) {
		t.Fatal("an answer through silence")
	}
	p.Set(redistest.Fault{})
	if !c.waits(t, long) {
		t.Fatal("what was held back does not arrive")
	}
	p.Set(redistest.Fault{Deaf: true})
	if _, err := c.Write([]byte("SET a 1\r\n")); err != nil {
		t.Fatal(err)
	}
	if c.waits(t, short) {
		t.Fatal("an answer that should be lost")
	}
	for deadline := time.Now().Add(long); s.Must("GET", "a") != "1"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the command whose answer was lost was not done")
		}
	}
	start := time.Now()
	p.Set(redistest.Fault{Latency: short})
	if !c.hears(t, long) || time.Since(start) < 2*short {
		t.Fatalf("the answer took %s; want %s each way", time.Since(start), short)
	}
	for name, f := range map[string]redistest.Fault{"jitter": {Jitter: 2 * short}, "slices": {Slice: 1}} {
		p.Set(f)
		if !c.hears(t, long) {
			t.Fatalf("no answer with %s", name)
		}
	}
	start = time.Now()
	p.Set(redistest.Fault{Rate: 100})
	if !c.hears(t, long) || time.Since(start) < short { // seven bytes there, and seven back
		t.Fatalf("the answer took %s over a slow line", time.Since(start))
	}
	p.Reset()
	if c.hears(t, long) {
		t.Fatal("an answer on a connection that was reset")
	}
	p.Set(redistest.Fault{Refuse: true})
	refused, err := net.Dial("tcp", p.Addr())
	if err != nil {
		return // the reset was faster than the connection
	}
	defer refused.Close()
	if (line{refused, bufio.NewReader(refused)}).hears(t, long) {
		t.Fatal("an answer on a connection that was refused")
	}
}

func TestCluster(t *testing.T) {
	servers := redistest.StartCluster(t)
	for _, s := range servers {
		if _, err := s.Do("CLUSTER", "SHARDS"); err != nil {
			t.Error(err)
		}
	}
}
