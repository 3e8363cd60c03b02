package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// liar is a store on a server whose scripts answer what the test wants; and the calls that it makes.
type liar struct {
	*testing.T
	lie   atomic.Pointer[string]
	store *redis.Store
	task  broker.TaskID
	grant broker.GrantID
}

func newLiar(t *testing.T, shards int) *liar {
	s := start(t)
	l := &liar{T: t}
	l.store = s.open(t, redis.Config{Shards: shards, URL: "redis://" + between(t, s.Addr(), func() func([]byte) ([]byte, bool) {
		return func(sent []byte) ([]byte, bool) {
			if lie := l.lie.Load(); lie != nil && bytes.Contains(sent, []byte("evalsha")) {
				return []byte(*lie), false
			}
			return nil, true
		}
	})}.Patient())
	reply := begin(t, l.store)
	l.task, l.grant = reply.Task.ID, reply.Grants[0].ID
	return l
}

// calls are those that answers are to.
func (l *liar) calls() map[string]func(context.Context) (any, error) {
	request := func(begins bool) broker.GrantRequest {
		req := beginning()
		req.Task, req.Grants[0].ID = l.task, l.grant
		req.Grants[0].Decision = ""
		if !begins {
			req.Begin = nil
		}
		return req
	}
	grant := func(begins bool) func(context.Context) (any, error) {
		return func(ctx context.Context) (any, error) { return l.store.Grant(ctx, request(begins)) }
	}
	endOf := func(e broker.Ending) func(context.Context) (any, error) {
		return func(ctx context.Context) (any, error) {
			replies, err := l.store.End(ctx, []broker.Ending{e})
			if err != nil {
				return nil, err
			}
			return replies, replies[0].Err
		}
	}
	return map[string]func(context.Context) (any, error){
		"Grant that begins": grant(true), "Grant that issues": grant(false), "Grant that is replayed": grant(true),
		"Heartbeat": func(ctx context.Context) (any, error) {
			pulses, err := l.store.Heartbeat(ctx, []broker.Beat{{Task: l.task, Workload: alice}})
			if err != nil {
				return nil, err
			}
			return pulses, pulses[0].Err
		},
		"End":               endOf(completing(l.task)),
		"End of a grant":    endOf(broker.Ending{Kind: broker.TargetGrant, Grant: l.grant, Cause: broker.CauseOperator}),
		"End of all":        endOf(broker.Ending{Kind: broker.TargetAll}),
		"Lookup":            func(ctx context.Context) (any, error) { return l.store.Lookup(ctx, broker.Ref{Task: l.task}) },
		"Lookup of a grant": func(ctx context.Context) (any, error) { return l.store.Lookup(ctx, broker.Ref{Grant: l.grant}) },
		"List":              func(ctx context.Context) (any, error) { return l.store.List(ctx, broker.Query{}) },
		"List of what is due": func(ctx context.Context) (any, error) {
			return l.store.List(ctx, broker.Query{Due: true})
		},
		"Watch": func(ctx context.Context) (any, error) {
			update, err := first(ctx, l.store, broker.Position{})
			update.Age = 0
			return update, err
		},
		"Read": func(ctx context.Context) (any, error) {
			value, version, now, err := l.store.Record("keys").Read(ctx)
			return fmt.Sprint(string(value), version, now), err
		},
		"Post": func(ctx context.Context) (any, error) {
			return nil, l.store.Post(ctx, broker.BoardNote{Kind: "kind", ID: "id", Life: time.Second})
		},
		"Notes": func(ctx context.Context) (any, error) { return l.store.Notes(ctx, "kind") },
	}
}

// told makes a call that hears a text, and returns what it makes of that.
func (l *liar) told(call func(context.Context) (any, error), text string) (string, error) {
	l.lie.Store(&text)
	defer l.lie.Store(nil)
	got, err := call(l.Context())
	return fmt.Sprintf("%+v", got), err
}

// bulk is a text as Redis sends it.
func bulk(text string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(text), text) }

// TestNonsense has a server whose answers make none: nothing is believed that it did not say, and nothing breaks. Each
// answer is a right one with one thing wrong.
func TestNonsense(t *testing.T) {
	t.Parallel()
	l := newLiar(t, 1)
	calls := l.calls()
	list := answers(bare(l.task), bare(l.grant))
	for _, a := range list {
		call := calls[a.what]
		right, err := l.told(call, bulk(a.text()))
		if err != nil {
			t.Fatalf("%s does not believe a right answer: %v", a.what, err)
		}
		doubt := broker.ErrUnavailable
		if a.writes { // it may have happened
			doubt = broker.ErrUnconfirmed
		}
		refused := func(text string) {
			t.Helper()
			if got, err := l.told(call, bulk(text)); !errors.Is(err, doubt) {
				t.Errorf("%s makes of %q: %s, error %v; want %v", a.what, text, got, err, doubt)
			}
		}
		refused(a.another().text())
		for n := range len(a.text()) {
			refused(a.text()[:n])
		}
		spoil(a.whole(), func(v any) { refused(packed(v)) })
		for _, v := range []any{row{}, row{row{}}, row{row{row{}}}, row{a.says, a.says, a.says}, row{row{a.says}}, row{"ok", row{a.says[1]}}} {
			refused(packed(v))
		}
		for _, other := range list {
			if !isOneOf(a, other) {
				refused(other.text())
			}
		}
		lengthen(a.whole(), func(v any) {
			if got, err := l.told(call, bulk(packed(v))); err == nil && got != right || err != nil && !errors.Is(err, doubt) {
				t.Errorf("%s makes of %q: %s, error %v; want %v, or what it makes of the right answer", a.what, packed(v), got, err, doubt)
			}
		})
	}
	eventually(t, "an end", func() bool {
		_, err := l.store.End(t.Context(), []broker.Ending{completing(l.task)})
		return err == nil
	})
}

// isOneOf reports whether a call may have another answer instead of its own: a begin may be a replay, and what comes
// after the whole of an answer is not looked at.
func isOneOf(a, other answer) bool {
	grants := strings.HasPrefix(a.what, "Grant") && strings.HasPrefix(other.what, "Grant")
	begins := len(other.says) >= len(a.says) && reflect.DeepEqual(a.says, other.says[:len(a.says)])
	return grants || begins && a.many == other.many
}

// TestNoAnswer has one that answers with no text, or with another status than any that the call can have: none is taken for
// success.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	l := newLiar(t, 1)
	calls := l.calls()
	for _, a := range answers(bare(l.task), bare(l.grant)) {
		texts := []string{
			"+OK\r\n", "-ERR what\r\n", ":1\r\n", "$-1\r\n", "*0\r\n", "*-1\r\n", "what\r\n", "\x00\x00\x00\r\n", "$3\r\nabcdef\r\n", "*1\r\n*1\r\n:1\r\n",
			"*1\r\n" + bulk(a.text()),
		}
		for _, status := range []string{"", "Ok", "what", "failed", "epoch", "not found", "ended", "quota", "behind", "declare", "broken", "mismatch"} {
			a.says[0] = status
			texts = append(texts, bulk(a.text()))
		}
		for _, text := range texts {
			if got, err := l.told(calls[a.what], text); err == nil {
				t.Errorf("%s believes %q: %s", a.what, text, got)
			}
		}
	}
}

// TestAnswersOfARun: each answer of a run is the one to its call.
func TestAnswersOfARun(t *testing.T) {
	t.Parallel()
	l := newLiar(t, 1)
	other := begin(t, l.store).Task.ID
	ends := func(ctx context.Context) (any, error) {
		replies, err := l.store.End(ctx, []broker.Ending{completing(l.task), completing(other)})
		for _, r := range replies { // each has its own error
			err = errors.Join(err, r.Err)
		}
		return replies, err
	}
	of := func(id broker.TaskID) row {
		for _, a := range answers(bare(id), "") {
			if a.what == "End" {
				return a.says
			}
		}
		return nil
	}
	a, b := of(l.task), of(other)
	if _, err := l.told(ends, bulk(packed(row{a, b}))); err != nil {
		t.Fatalf("the right answers: %v", err)
	}
	for what, answers := range map[string]row{
		"the other way round": {b, a}, "the first twice": {a, a}, "one": {a}, "none": {}, "four": {a, b, a, b}, "one and a record that nobody can read": {a, row{"k", "i"}},
	} {
		if got, err := l.told(ends, bulk(packed(answers))); !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("%s: got %s, error %v; want ErrUnconfirmed", what, got, err)
		}
	}
}

// TestPulsesOfARun: each pulse is the one of its task, and a grant is one of its own.
func TestPulsesOfARun(t *testing.T) {
	t.Parallel()
	l := newLiar(t, 1)
	other := begin(t, l.store).Task.ID
	beats := func(ctx context.Context) (any, error) {
		return l.store.Heartbeat(ctx, []broker.Beat{{Task: l.task, Workload: alice}, {Task: other, Workload: alice}})
	}
	a, b := rows{bare(l.task)}, rows{bare(other)}
	if _, err := l.told(beats, bulk(packed(row{"ok", "heartbeat", 1, rows{a, b}}))); err != nil {
		t.Fatalf("the right pulses: %v", err)
	}
	for what, pulses := range map[string]rows{"the other way round": {b, a}, "the first twice": {a, a}, "one": {a}, "none": {}, "three": {a, b, a}} {
		if got, err := l.told(beats, bulk(packed(row{"ok", "heartbeat", 1, pulses}))); !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("%s: got %s, error %v; want ErrUnconfirmed", what, got, err)
		}
	}
	for _, answer := range answers(bare(l.task), bare(l.grant)) {
		if answer.what != "Lookup of a grant" {
			continue
		}
		answer.says[5].(row)[1] = bare(other)
		if got, err := l.told(l.calls()[answer.what], bulk(answer.text())); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("a grant of another task: got %s, error %v; want ErrUnavailable", got, err)
		}
	}
}

// TestAnswersOfShards: each answer is the one of its shard, of its target, and of its place.
func TestAnswersOfShards(t *testing.T) {
	t.Parallel()
	l := newLiar(t, 2)
	const now, until, event = 1795717014000, 1795717074000, "evt_0123456789abcdefghjkmnpqrs"
	watch := func(shard int) string {
		return bulk(packed(row{"ok", fmt.Sprintf("watch %d", shard), now, 7, 7, 3, "", rows{}, rows{}, rows{}}))
	}
	calls := l.calls()
	if _, err := l.told(calls["Watch"], watch(0)+watch(1)); err != nil {
		t.Fatalf("the right answers: %v", err)
	}
	for what, test := range map[string]struct{ call, text string }{
		"the feeds the other way round": {"Watch", watch(1) + watch(0)},
		"the first feed twice":          {"Watch", watch(0) + watch(0)},
		"the first list twice":          {"List", bulk(packed(row{"ok", "list 0 all  ", now, rows{}, "", 0}))},
		"what is not due":               {"List of what is due", bulk(packed(row{"ok", "list 0 all  ", now, rows{}, "", 1, "7"}))},
		"the first denial twice":        {"End of all", bulk(packed(row{"ok", "all 0 ", now, 1, 7, now, event, "", "operator", 0}))},
		"the first notes twice":         {"Notes", bulk(packed(row{"ok", "kind 0", "5", rows{row{"id", 1000, "text"}}}))},
	} {
		if got, err := l.told(calls[test.call], test.text); err == nil || !strings.Contains(err.Error(), "instead of") {
			t.Errorf("%s: got %s, error %v; want one that says what was asked for", what, got, err)
		}
	}
}
