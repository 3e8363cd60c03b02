package sdk_test

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// Whatever happens in whatever order: no token leaves after the end, in its last tenth, without the
// SVID that it was asked for with, or without a heartbeat that was answered within two thirds of the lease.
func TestTokensUnderAnySequence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Without a Deadline, which a bubble's test must not be asked for.
		rapid.Check(struct{ rapid.TB }{t}, func(r *rapid.T) {
			m := newMachine(t, r)
			defer closeClient(m.client)
			r.Repeat(map[string]func(*rapid.T){
				"": m.check, "token": m.token, "wait": m.wait, "outage": m.outage, "rotate": m.rotate, "end": m.end,
				"slow": m.slow,
			})
		})
	})
}

type machine struct {
	*fake
	tb     testing.TB
	ca     *devmode.CA
	who    *identity
	client *sdk.Client
	task   *sdk.Task
	begun  time.Time
	good   []time.Time // when heartbeats that were answered well were sent
	down   bool
	delay  time.Duration
	over   bool // somebody has ended the task
}

func newMachine(t *testing.T, r *rapid.T) *machine {
	m := &machine{fake: newFake(t), tb: t, ca: must(devmode.NewCA("example.org", devmode.Options{}))(t)}
	m.life = time.Duration(rapid.IntRange(2, 120).Draw(r, "life")) * time.Second
	m.who = newIdentity(t, m.ca)
	m.client = inBubbleAs(t, m.fake, m.who)
	s := spec
	s.Lease = time.Duration(rapid.IntRange(5, 60).Draw(r, "lease")) * time.Second
	m.begun = time.Now()
	m.task = begin(t, m.client, s)
	m.good = []time.Time{m.begun}
	for _, route := range []string{tokens, heartbeats} {
		m.on(route, func(w http.ResponseWriter, req *http.Request) {
			sent := time.Now()
			m.mu.Lock()
			isDown, delay := m.down, m.delay
			m.mu.Unlock()
			time.Sleep(delay)
			if isDown {
				down(w, req)
			}
			m.answer(w, req)
			if route == heartbeats && req.Context().Err() == nil && m.state(m.task.ID()) == wire.StateActive {
				m.mu.Lock()
				m.good = append(m.good, sent)
				m.mu.Unlock()
			}
		})
	}
	return m
}

func (m *machine) lease() time.Duration {
	var req wire.BeginRequest
	m.read(m.got(tasks)[0].body, &req)
	return time.Duration(*req.LeaseSeconds) * time.Second
}

func (m *machine) token(r *rapid.T) {
	scopes := rapid.SampledFrom([][]string{nil, {"a"}, {"a", "b"}}).Draw(r, "scopes")
	token, err := m.task.Token(m.tb.Context(), sdk.TokenRequest{Audience: "orders", Scopes: scopes, Fresh: rapid.Bool().Draw(r, "fresh")})
	if err != nil {
		m.mu.Lock()
		isDown := m.down
		m.mu.Unlock()
		if !isDown && !m.over && !errors.Is(err, sdk.ErrTaskEnded) && !errors.Is(err, sdk.ErrUnavailable) {
			r.Fatalf("no token, for no reason: %v", err)
		}
		return
	}
	m.mu.Lock()
	last := slices.MaxFunc(m.good, time.Time.Compare)
	m.mu.Unlock()
	if quiet := time.Since(last); quiet >= m.lease()*2/3 {
		r.Fatalf("a token %s after the last good heartbeat, with a lease of %s", quiet, m.lease())
	}
	if m.task.State() != sdk.Active || m.task.Context().Err() != nil {
		r.Fatalf("a token of a task that is %s", m.task.State())
	}
	if left := time.Until(token.Expires); left <= m.life/10-time.Nanosecond {
		r.Fatalf("a token with %s left of %s", left, m.life)
	}
	var minted []call
	for _, c := range m.got(tokens) {
		if c.at.Equal(token.Expires.Add(-m.life)) {
			minted = append(minted, c)
		}
	}
	leaf := leafOf(token.SVID())
	if !slices.ContainsFunc(minted, func(c call) bool { return c.leaf == leaf }) {
		r.Fatal("a token for another certificate")
	}
}

func (m *machine) wait(r *rapid.T) {
	time.Sleep(time.Duration(rapid.IntRange(1, 30_000).Draw(r, "ms")) * time.Millisecond)
}

func (m *machine) outage(*rapid.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = !m.down
}

func (m *machine) slow(r *rapid.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = time.Duration(rapid.IntRange(0, 3000).Draw(r, "ms")) * time.Millisecond
}

func (m *machine) rotate(*rapid.T) {
	svid := must(m.ca.Issue(reportID, 24*time.Hour))(m.tb)
	m.who.change(func(i *identity) { i.svid = svid })
}

// end is by somebody else at times, which a heartbeat has to find out.
func (m *machine) end(r *rapid.T) {
	switch rapid.IntRange(0, 9).Draw(r, "by") {
	case 0:
		m.set(m.task.ID(), wire.StateRevoked)
		m.over = true
	case 1:
		_, _ = m.task.Complete(m.tb.Context())
		m.over = true
		if _, err := m.task.Token(m.tb.Context(), ordersRead); !errors.Is(err, sdk.ErrTaskEnded) {
			r.Fatalf("a token after the end: %v", err)
		}
	}
}

// check holds after every step.
func (m *machine) check(r *rapid.T) {
	synctest.Wait()
	m.mu.Lock()
	last := slices.MaxFunc(m.good, time.Time.Compare)
	m.mu.Unlock()
	if quiet := time.Since(last); quiet >= m.lease()*2/3 && m.task.State() == sdk.Active {
		r.Fatalf("the task is active %s after the last good heartbeat", quiet)
	}
	if (m.task.State() == sdk.Active) != (m.task.Context().Err() == nil) {
		r.Fatalf("the task is %s, and its context says %v", m.task.State(), m.task.Context().Err())
	}
}
