package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/policy"
	"github.com/errandhq/errand/store/memory"
)

func details(t testing.TB, list ...string) broker.Details {
	t.Helper()
	var raw []json.RawMessage
	for _, text := range list {
		raw = append(raw, json.RawMessage(text))
	}
	d, err := broker.ParseDetails(raw)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// asks keeps what a policy was asked.
type asks struct {
	broker.Policy
	mu   sync.Mutex
	seen []broker.Ask
}

func (a *asks) Decide(ctx context.Context, ask broker.Ask) (broker.Decision, error) {
	a.mu.Lock()
	a.seen = append(a.seen, ask)
	a.mu.Unlock()
	return a.Policy.Decide(ctx, ask)
}

// TestPolicySeesWhatATaskSays: at its begin, and at each token of it.
func TestPolicySeesWhatATaskSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		p := &asks{Policy: policy.Ceiling{}}
		h := newHarness(t, store, func(c *broker.Config) { c.Policy = p })
		says := broker.Attributes{
			Ticket: "CHG-1", Ref: broker.TaskRef{Kind: "k8s/job", ID: "1"}, Labels: map[string]string{"env": "prod"}, Context: `{"intent":"export"}`,
		}
		all := details(t, `{"type":"payment"}`, `{"type":"customer"}`)
		begun := h.begin(report, func(r *broker.BeginRequest) {
			r.Attributes, r.Ceiling.Details = says, all
			r.Tokens = []broker.TokenRequest{{Audience: "orders", Details: all[:1]}}
		})
		if _, err := h.Issue(t.Context(), workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders", Details: all[1:]}); err != nil {
			t.Fatal(err)
		}
		for i, want := range []broker.Details{nil, all[:1], all[1:]} {
			ask := p.seen[i]
			if !reflect.DeepEqual(ask.Task.Attributes, says) || !reflect.DeepEqual(ask.Task.Ceiling.Details, all) || !reflect.DeepEqual(ask.Details, want) {
				t.Errorf("ask %d: %+v", i, ask)
			}
		}
		if len(p.seen[0].Audiences) != 3 {
			t.Errorf("asked about %d audiences; want those of the workload's ceiling, since the task leaves them open", len(p.seen[0].Audiences))
		}
	})
}

// TestDetailsOfAChild: they are some of its parent's, and none by themselves.
func TestDetailsOfAChild(t *testing.T) {
	inBubble(t, func(h *harness) {
		all := details(h.t, `{"type":"payment","max":5}`, `{"type":"customer"}`)
		parent := h.begin(report, func(r *broker.BeginRequest) { r.Ceiling.Details = all })
		below := func(d broker.Details) (broker.Begun, error) {
			return h.tryBegin(report, func(r *broker.BeginRequest) { r.Parent, r.Ceiling.Details = parent.Task.ID, d })
		}
		if child, err := below(all[:1]); err != nil || !reflect.DeepEqual(child.Task.Ceiling.Details, all[:1]) {
			h.t.Errorf("some: %+v, %v", child.Task.Ceiling, err)
		}
		if child, err := below(nil); err != nil || child.Task.Ceiling.Details != nil {
			h.t.Errorf("none: %+v, %v", child.Task.Ceiling, err)
		}
		_, err := below(details(h.t, `{"type":"payment","max":6}`))
		want(h.t, err, broker.ErrScopeExceeded)
	})
}

// TestNotesOfHeartbeats: a bad one changes nothing of the whole batch.
func TestNotesOfHeartbeats(t *testing.T) {
	inBubble(t, func(h *harness) {
		one, two := h.begin(report, nil).Task, h.begin(report, nil).Task
		beats := []broker.Beat{{Task: one.ID, Note: "halfway"}, {Task: two.ID, Note: strings.Repeat("n", broker.MaxNote+1), Workload: workload(night).ID}}
		_, err := h.Heartbeat(h.t.Context(), workload(report), beats)
		want(h.t, err, broker.ErrInvalid)
		if task, err := h.Task(h.t.Context(), workload(report), one.ID); err != nil || task.Note != "" {
			h.t.Errorf("after a batch that was refused: %+v, %v", task, err)
		}
		beats[1].Note = beats[1].Note[1:]
		pulses, err := h.Heartbeat(h.t.Context(), workload(report), beats)
		if err != nil || pulses[0].Task.Note != "halfway" || pulses[1].Task.Note != beats[1].Note {
			h.t.Errorf("got %+v, %v", pulses, err)
		}
	})
}

// FuzzObject: two objects have one canonical form exactly when a JSON parser takes them for the same,
// and that form is its own.
func FuzzObject(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"b":1,"a":[1.0,"\u00e9"]}`, `{ "a" : [1e0, "é"], "b" : 10e-1 }`},
		{`{"a":-0}`, `{"a":0}`}, {`{"a":9007199254740992}`, `{"a":9007199254740993}`},
		{`{"a":1e400}`, `{"a":1e-400}`}, {`{"a":0.1}`, `{"a":0.10000000000000001}`},
		{`{"a":1,"a":1}`, `{"a":"\ud800"}`}, {`{"A":1,"a":2}`, `{"a":2,"A":1}`}, {`[]`, ``},
		{`{"\ufb33":1,"\ud83d\ude00":2}`, `{"\ud83d\ude00":2,"\ufb33":1}`}, // UTF-16 order is not that of bytes
		{`{"a":{"a":{"a":{"a":{"a":{"a":{"a":{}}}}}}}}`, `{"a":[null,true,false,{"":""}]}`},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, errX := broker.ParseContext([]byte(a))
		y, errY := broker.ParseContext([]byte(b))
		for _, o := range []broker.Object{x, y} {
			if again, err := broker.ParseContext([]byte(o)); err != nil || again != o {
				t.Fatalf("%q is canonical, and becomes %q, %v", o, again, err)
			}
			if len(o) > broker.MaxContext {
				t.Fatalf("%d bytes", len(o))
			}
		}
		if errX != nil || errY != nil || x == "" || y == "" {
			return
		}
		var u, v any
		if json.Unmarshal([]byte(a), &u) != nil || json.Unmarshal([]byte(b), &v) != nil {
			t.Fatalf("%q and %q were read, and one is no JSON", a, b)
		}
		if (x == y) != reflect.DeepEqual(u, v) {
			t.Fatalf("%q and %q are %q and %q", a, b, x, y)
		}
	})
}

// TestObjectIsTheSameToEveryReader: encoding/json, as many others, takes names for one that differ in letter
// case alone, and the last of them counts: a resource server must not read another amount than the policy.
func TestObjectIsTheSameToEveryReader(t *testing.T) {
	for text, good := range map[string]bool{
		`{"type":"payment","amount":5}`:                              true,
		`{"type":"payment","amount":5,"Amount":9}`:                   false,
		"{\"type\":\"payment\",\"sum\":5,\"\u017fum\":9}":            false, // the long s is a small s
		`{"type":"payment","a":{"x":1},"b":{"X":1}}`:                 true,
		`{"type":"payment","a":{"x":1,"X":1}}`:                       false,
		`{"type":"payment","a":[{"x":1},{"X":1}]}`:                   true,
		`{"type":"payment","a":[{"x":{"y":1}},{"x":{"y":1,"Y":2}}]}`: false,
		`{"type":"payment","x":"X","X2":"x"}`:                        true,
	} {
		_, err := broker.ParseDetails([]json.RawMessage{json.RawMessage(text)})
		if (err == nil) != good || err != nil && !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestDetailTypes(t *testing.T) {
	d := details(t, `{"type":"b","n":1}`, `{"type":"a"}`, `{"type":"b","n":2}`)
	if got := d.Unknown([]string{"a"}); !reflect.DeepEqual(got, []string{"b"}) {
		t.Errorf("unknown are %q", got)
	}
	if got := d.Unknown(nil); len(got) != 2 {
		t.Errorf("unknown are %q", got)
	}
	if got := d.Minus(d[1:]); !reflect.DeepEqual(got, d[:1]) {
		t.Errorf("what is left is %q", got)
	}
	for _, text := range []string{"", "{}", `{"Type":"a"}`, `{"type":1}`, `[]`, `nonsense`} {
		if kind := broker.Object(text).Type(); kind != "" {
			t.Errorf("%q has the type %q", text, kind)
		}
	}
	for _, list := range [][]string{{"a b"}, {""}, {"a", "a"}, {strings.Repeat("t", broker.MaxDetailType+1)}, {"é"}} {
		if _, err := broker.ParseDetailTypes(list); err == nil {
			t.Errorf("%q was taken", list)
		}
	}
	if got, err := broker.ParseDetailTypes([]string{"https://example.org/payment", "a"}); err != nil || got[0] != "a" {
		t.Errorf("got %q, %v", got, err)
	}
}
