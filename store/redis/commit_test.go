package redis_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// together makes n calls at once and returns what each was told.
func together(n int, call func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = call(i) })
	}
	wg.Wait()
	return errs
}

// in is a begin in a shard.
func in(shard int) broker.GrantRequest {
	req := beginning()
	req.Task, req.Grants[0].ID = broker.NewTaskID(shard), broker.NewGrantID(shard)
	return req
}

const crowd = 64

// TestOneRoundTrip: to begin a task with its first tokens is one command, and so is to end it with
// all of them.
func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	s := start(t)
	var mu sync.Mutex
	var sent []byte
	store := s.open(t, redis.Config{URL: "redis://" + between(t, s.Addr(), func() func([]byte) ([]byte, bool) {
		return func(piece []byte) ([]byte, bool) {
			mu.Lock()
			defer mu.Unlock()
			sent = append(sent, piece...)
			return nil, true
		}
	})}.Patient())
	operations(t.Context(), store, begin(t, store).Task) // so that the server knows the scripts, and there is a connection
	one := func(what string, call func()) {
		t.Helper()
		mu.Lock()
		sent = nil
		mu.Unlock()
		call()
		mu.Lock()
		defer mu.Unlock()
		if got := commandsIn(t, sent); !slices.Equal(got, []string{"evalsha"}) {
			t.Errorf("%s was %q; want one script and nothing else", what, got)
		}
	}
	req := beginning()
	for range 9 {
		ask := req.Grants[0]
		ask.ID = broker.NewGrantID(0)
		req.Grants = append(req.Grants, ask)
	}
	one("a begin with ten tokens", func() {
		if reply, err := store.Grant(t.Context(), req); err != nil || len(reply.Grants) != 10 {
			t.Fatalf("%+v, %v", reply, err)
		}
	})
	one("a heartbeat", func() {
		if _, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: req.Task, Workload: alice}}); err != nil {
			t.Fatal(err)
		}
	})
	one("a look-up", func() {
		if _, err := store.Lookup(t.Context(), broker.Ref{Grant: req.Grants[0].ID}); err != nil {
			t.Fatal(err)
		}
	})
	one("an end", func() { end(t, store, completing(req.Task)) })
}

// commandsIn are the names of the commands in what a client has sent.
func commandsIn(t *testing.T, sent []byte) (names []string) {
	t.Helper()
	from := bufio.NewReader(bytes.NewReader(sent))
	number := func(sign string) (n int, ok bool) {
		line, err := from.ReadString('\n')
		if err != nil {
			return 0, false
		}
		n, err = strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, sign)))
		if err != nil || !strings.HasPrefix(line, sign) {
			t.Fatalf("no command: %q", line)
		}
		return n, true
	}
	for {
		words, ok := number("*")
		if !ok {
			return names
		}
		for i := range words {
			size, _ := number("$")
			word := make([]byte, size+2)
			if _, err := io.ReadFull(from, word); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				names = append(names, strings.ToLower(string(word[:size])))
			}
		}
	}
}

// TestBatches sends many calls over a slow way: they share round trips, and each gets its own answer.
func TestBatches(t *testing.T) {
	t.Parallel()
	s := start(t)
	proxy := redistest.Between(t, s.Addr())
	store := s.open(t, redis.Config{URL: proxy.URL()})
	begin(t, store)
	proxy.Set(redistest.Fault{Latency: 10 * time.Millisecond})
	began := time.Now()
	for i, err := range together(crowd, func(int) error {
		req := beginning()
		reply, err := store.Grant(t.Context(), req)
		if err == nil && (reply.Task.ID != req.Task || reply.Grants[0].ID != req.Grants[0].ID) {
			err = fmt.Errorf("got the answer to another call: %+v", reply)
		}
		return err
	}) {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	// One after the other they would take 20 ms each.
	if took := time.Since(began); took > crowd/2*20*time.Millisecond {
		t.Errorf("%d calls took %s over a way of 20 ms; want few round trips", crowd, took)
	}
}

// TestOneBadCallFailsAlone has a shard whose data are spoiled.
func TestOneBadCallFailsAlone(t *testing.T) {
	t.Parallel()
	s := start(t)
	proxy := redistest.Between(t, s.Addr())
	store := s.open(t, redis.Config{URL: proxy.URL(), Shards: 2})
	s.client.LPush(t.Context(), "errand:{p01}:tasks", "not ours")
	proxy.Set(redistest.Fault{Latency: 5 * time.Millisecond})
	for i, err := range together(crowd, func(i int) error {
		_, err := store.Grant(t.Context(), in(i%2))
		return err
	}) {
		if (err != nil) != (i%2 == 1) {
			t.Errorf("a begin in shard %d: %v", i%2, err)
		}
	}
}

// TestServerDiesInTheMiddle: nobody is told that something has happened, and everybody is told in time.
func TestServerDiesInTheMiddle(t *testing.T) {
	t.Parallel()
	s := start(t)
	proxy := redistest.Between(t, s.Addr())
	store := s.open(t, redis.Config{URL: proxy.URL()})
	begin(t, store)
	proxy.Set(redistest.Fault{Deaf: true}) // what arrives is done, and nobody hears of it
	time.AfterFunc(50*time.Millisecond, s.Kill)
	began := time.Now()
	unconfirmed := 0
	for i, err := range together(crowd, func(int) error {
		_, err := store.Grant(t.Context(), beginning())
		return err
	}) {
		if !errors.Is(err, broker.ErrUnconfirmed) && !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("call %d: %v; want ErrUnconfirmed or ErrUnavailable", i, err)
		}
		if errors.Is(err, broker.ErrUnconfirmed) {
			unconfirmed++
		}
	}
	if took := time.Since(began); took > time.Second+slack {
		t.Errorf("the last was told after %s", took)
	}
	if unconfirmed == 0 {
		t.Error("nobody was told that it may have happened, and some of it has")
	}
}

// TestP10_SilentServer: every call of a crowd is refused within a second.
func TestP10_SilentServer(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{})
	begin(t, store)
	s.Pause()
	defer s.Resume()
	together(2*crowd, func(i int) error {
		began := time.Now()
		_, err := store.Grant(t.Context(), beginning())
		if took := time.Since(began); err == nil || took > time.Second+slack {
			t.Errorf("call %d: %v after %s; want a refusal within a second", i, err, took)
		}
		return err
	})
}

// slack is for a machine that has other things to do.
const slack = 4 * time.Second

// TestEndsGoOnWhileIssuingIsStuck holds back what a workload asks for, and with it the lane.
func TestEndsGoOnWhileIssuingIsStuck(t *testing.T) {
	t.Parallel()
	s := start(t)
	stuck := spiffeid.RequireFromString("spiffe://example.org/stuck")
	address, held := holding(t, s.Addr(), stuck.String())
	store := s.open(t, redis.Config{URL: "redis://" + address})
	task := begin(t, store).Task
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				req := beginning()
				req.Workload = stuck
				if _, err := store.Grant(ctx, req); err == nil {
					t.Error("a call that is held back was answered")
				}
			}
		})
	}
	eventually(t, "the lane is stuck", func() bool { return held.Load() >= 2 })
	for range 5 {
		began := time.Now()
		if _, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: task.ID, Workload: alice}}); err != nil {
			t.Errorf("Heartbeat: %v", err)
		}
		if _, err := store.Lookup(t.Context(), broker.Ref{Task: task.ID}); err != nil {
			t.Errorf("Lookup: %v", err)
		}
		end(t, store, completing(task.ID))
		if took := time.Since(began); took > slack {
			t.Errorf("an end took %s", took)
		}
	}
	cancel()
	wg.Wait()
}
