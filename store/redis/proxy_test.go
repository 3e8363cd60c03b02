package redis_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// holding is a way to a server on which a connection goes silent when a text passes; held counts them.
func holding(t *testing.T, target, text string) (address string, held *atomic.Int32) {
	t.Helper()
	held = new(atomic.Int32)
	return between(t, target, func() func([]byte) ([]byte, bool) {
		silent := false
		return func(sent []byte) ([]byte, bool) {
			if !silent && bytes.Contains(sent, []byte(text)) {
				silent = true
				held.Add(1)
			}
			return nil, !silent
		}
	}), held
}

// between is a way to a server on which somebody listens. For each connection meet makes a function
// that is given what the client sends, and says what it is told instead, or that the server gets it.
func between(t *testing.T, target string, meet func() func([]byte) ([]byte, bool)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			hear := meet()
			all.Go(func() {
				defer func() { _ = client.Close() }()
				_, _ = io.Copy(client, server)
			})
			all.Go(func() {
				defer func() { _ = server.Close() }()
				buffer := make([]byte, 64<<10)
				for {
					n, err := client.Read(buffer)
					if err != nil {
						return
					}
					answer, pass := hear(buffer[:n])
					if _, err := client.Write(answer); err != nil {
						return
					}
					if !pass {
						continue
					}
					if _, err := server.Write(buffer[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}

// TestNonsense has a server whose answers make none: nothing is believed, and nothing breaks.
func TestNonsense(t *testing.T) {
	t.Parallel()
	s := start(t)
	var nonsense atomic.Pointer[string]
	store := s.open(t, redis.Config{URL: "redis://" + between(t, s.Addr(), func() func([]byte) ([]byte, bool) {
		return func(sent []byte) ([]byte, bool) {
			if text := nonsense.Load(); text != nil && bytes.Contains(bytes.ToLower(sent), []byte("evalsha")) {
				return []byte(*text), false
			}
			return nil, true
		}
	})})
	task := begin(t, store).Task
	id := bare(task.ID)
	list := func(items ...string) string { return fmt.Sprintf("*%d\r\n%s", len(items), strings.Join(items, "")) }
	text := func(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }
	number := ":1795717014140\r\n"
	answers := []string{
		"+OK\r\n", "-ERR what\r\n", ":1\r\n", "$-1\r\n", "*0\r\n", "*-1\r\n", "what\r\n", "\x00\x00\x00\r\n", "$3\r\nabcdef\r\n", "*1\r\n*1\r\n:1\r\n",
		list(text("ok"), text("somebody else")), list(number, number), list(list(), list()),
	}
	for _, echo := range []string{id, "heartbeat", "list", "watch", "all"} {
		for _, status := range []string{"ok", "begun", "issued", "replayed", "declare", "active", "ended", "behind", "quota", "what", ""} {
			for _, rest := range [][]string{
				nil, {number}, {number, number, number}, {number, text("x")}, {number, number, number, list()}, {number, list()},
				{number, number, number, list(number), number, text("short")}, {number, list(list(text(id), list(text("x"))))},
				{number, number, list(text(id), text("no workload"))}, {number, number, number, number, list(list(number))},
			} {
				answers = append(answers, list(append([]string{text(status), text(echo)}, rest...)...))
			}
		}
	}
	for _, answer := range answers {
		nonsense.Store(&answer)
		_, heartbeat := store.Heartbeat(t.Context(), []broker.Beat{{Task: task.ID, Workload: alice}})
		_, lookup := store.Lookup(t.Context(), broker.Ref{Task: task.ID})
		_, list := store.List(t.Context(), broker.Query{})
		_, watch := first(t.Context(), store, broker.Position{})
		req := beginning()
		req.Task = task.ID
		_, grant := store.Grant(t.Context(), req)
		for what, err := range map[string]error{"Grant": grant, "Heartbeat": heartbeat, "Lookup": lookup, "List": list, "Watch": watch} {
			if err == nil {
				t.Errorf("%s believes %q", what, answer)
			}
		}
		if replies, err := store.End(t.Context(), []broker.Ending{completing(task.ID)}); err == nil && replies[0].Err == nil && replies[0].Receipt.State != broker.Active {
			t.Errorf("End believes %q: %+v", answer, replies)
		}
		if replies, err := store.End(t.Context(), []broker.Ending{{Kind: broker.TargetAll}}); err == nil {
			t.Errorf("End of all believes %q: %+v", answer, replies)
		}
	}
	nonsense.Store(nil)
	eventually(t, "an end", func() bool {
		_, err := store.End(t.Context(), []broker.Ending{completing(task.ID)})
		return err == nil
	})
}
