package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
)

// flights stand for the server: each flight is under way until the test lets it land.
type flights struct {
	mu   sync.Mutex
	list []*flight
}

type flight struct {
	ctx   context.Context
	calls []call
	land  chan struct{}
}

// send answers each call with its own echo.
func (f *flights) send(ctx context.Context, calls []call) []reply {
	this := &flight{ctx: ctx, calls: calls, land: make(chan struct{})}
	f.mu.Lock()
	f.list = append(f.list, this)
	f.mu.Unlock()
	<-this.land
	replies := make([]reply, len(calls))
	for i, c := range calls {
		replies[i].status = c.echo
		if c.echo == "bad" {
			replies[i].err = errors.New("bad")
		}
	}
	return replies
}

// sizes are those of all flights so far.
func (f *flights) sizes() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var sizes []int
	for _, this := range f.list {
		sizes = append(sizes, len(this.calls))
	}
	return fmt.Sprint(sizes)
}

// landAll lets flights land until there are no more.
func (f *flights) landAll() {
	for i := 0; ; i++ {
		synctest.Wait()
		f.mu.Lock()
		if i == len(f.list) {
			f.mu.Unlock()
			return
		}
		this := f.list[i]
		f.mu.Unlock()
		select {
		case <-this.land:
		default:
			close(this.land)
		}
	}
}

// party is a lane and what its callers were told.
type party struct {
	t       *testing.T
	flights flights
	lane    *lane
	runners sync.WaitGroup
	callers sync.WaitGroup
	mu      sync.Mutex
	told    map[string]error
}

func newParty(t *testing.T) *party {
	p := &party{t: t, told: map[string]error{}}
	p.lane = &lane{send: p.flights.send, patience: usual.send, runners: &p.runners}
	return p
}

// call makes a call in the background, and waits until it is under way or waits.
func (p *party) call(ctx context.Context, echo string) {
	p.calls(ctx, echo, 1)
}

// calls makes so many in one.
func (p *party) calls(ctx context.Context, echo string, n int) {
	p.callers.Go(func() {
		r := p.lane.run(ctx, slices.Repeat([]call{{script: &script{name: "grant", writes: true}, echo: echo}}, n))[n-1]
		if r.err == nil && r.status != echo {
			r.err = fmt.Errorf("got the answer to %s", r.status)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.told[echo] = r.err
	})
	synctest.Wait()
}

// end lands everything, and wants nobody to be left.
func (p *party) end() {
	p.flights.landAll()
	p.callers.Wait()
	p.runners.Wait()
	if p.lane.flying || len(p.lane.waiting) != 0 || p.lane.queued != 0 {
		p.t.Errorf("flying: %t, and %d jobs of %d calls are left", p.lane.flying, len(p.lane.waiting), p.lane.queued)
	}
}

func (p *party) wants(echo string, want error) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	got, ok := p.told[echo]
	if !ok || !errors.Is(got, want) || (want == nil) != (got == nil) {
		p.t.Errorf("%s was told %v (at all: %v); want %v", echo, got, ok, want)
	}
}

func TestLane(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(*party)
	}{
		{"one that is alone goes at once", func(p *party) {
			p.call(p.t.Context(), "a")
			if got := p.flights.sizes(); got != "[1]" {
				p.t.Errorf("the flights are %s; want one with one call", got)
			}
			p.end()
			p.wants("a", nil)
		}},
		{"one that is alone and leaves does not wait", func(p *party) {
			leaving, leave := context.WithCancel(p.t.Context())
			p.call(leaving, "a")
			leave()
			synctest.Wait()
			p.wants("a", broker.ErrUnconfirmed)
			p.call(leaving, "b")
			p.wants("b", broker.ErrUnavailable) // it had left before
			p.end()
			if got := p.flights.sizes(); got != "[1]" {
				p.t.Errorf("the flights are %s; want none for who has left", got)
			}
		}},
		{"batches form while others are under way", func(p *party) {
			const n = 1 + maxBatch + 10
			for i := range n {
				p.call(p.t.Context(), fmt.Sprint(i))
			}
			if got := p.flights.sizes(); got != "[1]" {
				p.t.Errorf("the flights under way are %s; want one with one call", got)
			}
			p.end()
			if got, want := p.flights.sizes(), fmt.Sprintf("[1 %d 10]", maxBatch); got != want {
				p.t.Errorf("the flights are %s; want %s", got, want)
			}
			for i := range n {
				p.wants(fmt.Sprint(i), nil)
			}
		}},
		{"one bad call fails alone", func(p *party) {
			for _, echo := range []string{"a", "b", "c", "bad", "d"} {
				p.call(p.t.Context(), echo)
			}
			p.end()
			for _, echo := range []string{"a", "b", "c", "d"} {
				p.wants(echo, nil)
			}
			if p.told["bad"] == nil {
				p.t.Error("the bad call was told nothing")
			}
		}},
		{"who leaves takes nobody along", func(p *party) {
			leaving, leave := context.WithCancel(p.t.Context())
			p.call(leaving, "leader") // goes alone
			p.call(leaving, "follower")
			p.call(p.t.Context(), "waits on")
			leave()
			synctest.Wait()
			p.wants("follower", broker.ErrUnavailable) // it has not left
			p.end()
			p.wants("waits on", nil)
			if got := p.flights.sizes(); got != "[1 1]" {
				p.t.Errorf("the flights are %s; want none for who has left", got)
			}
		}},
		{"who leaves under way does not know", func(p *party) {
			leaving, leave := context.WithCancel(p.t.Context())
			p.call(p.t.Context(), "a")
			p.call(leaving, "leaves")
			p.call(p.t.Context(), "stays")
			close(p.flights.list[0].land)
			synctest.Wait()
			if ctx := p.flights.list[1].ctx; len(p.flights.list[1].calls) != 2 || ctx.Err() != nil {
				p.t.Fatalf("the flights are %s; want one of two calls", p.flights.sizes())
			}
			leave()
			synctest.Wait()
			p.wants("leaves", broker.ErrUnconfirmed)
			if p.flights.list[1].ctx.Err() != nil {
				p.t.Error("the flight ended with the context of one of its callers")
			}
			p.end()
			p.wants("stays", nil)
		}},
		{"nobody waits for longer than a call may take", func(p *party) {
			p.call(p.t.Context(), "a")
			p.call(p.t.Context(), "waits")
			began := time.Now()
			time.Sleep(usual.send)
			synctest.Wait()
			p.wants("waits", broker.ErrUnavailable)
			if waited := time.Since(began); waited > time.Second {
				p.t.Errorf("waited for %s", waited)
			}
			p.end()
		}},
		{"a full lane refuses at once", func(p *party) {
			for i := range 1 + maxWaiting {
				p.call(p.t.Context(), fmt.Sprint(i))
			}
			p.call(p.t.Context(), "one more")
			p.wants("one more", broker.ErrUnavailable)
			p.end()
			p.wants(fmt.Sprint(maxWaiting), nil)
		}},
		{"a lane is full of calls, however many make them", func(p *party) {
			const each = maxBatch / 2
			for i := range 1 + maxWaiting/each {
				p.calls(p.t.Context(), fmt.Sprint(i), each)
			}
			p.call(p.t.Context(), "one more")
			p.wants("one more", broker.ErrUnavailable)
			p.end()
			p.wants(fmt.Sprint(maxWaiting/each), nil)
		}},
		{"a closed lane lets nobody in", func(p *party) {
			p.call(p.t.Context(), "a")
			p.call(p.t.Context(), "waits")
			p.lane.close()
			p.call(p.t.Context(), "late")
			p.wants("late", broker.ErrUnavailable)
			p.end()
			p.wants("waits", nil)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.run(newParty(t)) })
		})
	}
}

// TestLaneEndsWithItsFlights: who closes it waits for the flight that is under way and for those that
// follow, whoever makes them.
func TestLaneEndsWithItsFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t)
		p.call(t.Context(), "leader")
		p.call(t.Context(), "waits")
		p.lane.close()
		closed := make(chan struct{})
		go func() {
			p.runners.Wait()
			close(closed)
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("closed while a call is under way and another one waits")
		default:
		}
		p.end()
		<-closed
		p.wants("leader", nil)
		p.wants("waits", nil)
	})
}

// TestLaneTellsTheTruth has a server that is slow and loses calls and answers, and callers that leave:
// what each is told is what has happened to its own call, or that nobody knows.
func TestLaneTellsTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		done := map[string]int{} // how often the server has done a call
		var runners, callers sync.WaitGroup
		l := &lane{runners: &runners, patience: usual.send, send: func(_ context.Context, calls []call) []reply {
			replies := make([]reply, len(calls))
			time.Sleep(rand.N(300 * time.Millisecond))
			for i, c := range calls {
				replies[i].status = c.echo
				fate := rand.N(6)
				if fate > 1 {
					mu.Lock()
					done[c.echo]++
					mu.Unlock()
				}
				switch fate {
				case 0:
					replies[i].err = broker.ErrUnavailable
				case 1, 2:
					replies[i].err = broker.ErrUnconfirmed
				}
			}
			return replies
		}}
		told := make([]error, 3000)
		for i := range told {
			callers.Go(func() {
				time.Sleep(rand.N(20 * time.Second))
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(time.Second))
				defer cancel()
				echo := fmt.Sprint(i)
				r := l.run(ctx, []call{{script: &script{name: "grant", writes: true}, echo: echo}})[0]
				if told[i] = r.err; r.err == nil && r.status != echo {
					t.Errorf("call %d got the answer to %s", i, r.status)
				}
			})
		}
		callers.Wait()
		l.close()
		runners.Wait()
		synctest.Wait()
		for i, err := range told {
			n := done[fmt.Sprint(i)]
			if n > 1 || err == nil && n != 1 || errors.Is(err, broker.ErrUnavailable) && n != 0 {
				t.Errorf("call %d was done %d times, and was told %v", i, n, err)
			}
		}
		if l.flying || len(l.waiting) != 0 {
			t.Errorf("flying: %t, and %d jobs are left", l.flying, len(l.waiting))
		}
	})
}

// TestLanes: on a cluster each shard has its own, since its node may be another.
func TestLanes(t *testing.T) {
	s := &Store{}
	if n := len(s.newLanes(16)); n != 1 {
		t.Errorf("%d lanes on one server; want 1", n)
	}
	s.cluster = true
	if n := len(s.newLanes(16)); n != 16 {
		t.Errorf("%d lanes on a cluster; want one for each shard", n)
	}
}
