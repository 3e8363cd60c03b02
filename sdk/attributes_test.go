package sdk_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// What a spec says about its task is in the request, and what cannot be is refused before it is sent.
func TestAttributesAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f, sdk.WithDefaults(sdk.TaskSpec{Labels: map[string]string{"env": "prod"}}))
		s := spec
		s.Ticket, s.Ref = "CHG-1", sdk.Ref{Kind: "k8s/job", ID: "6f1c", URL: "https://k8s.example.org/6f1c"}
		s.Context = map[string]any{"intent": "export", "n": 2}
		s.Details = []json.RawMessage{[]byte(`{"type": "payment"}`)}
		s.Tokens = []sdk.TokenRequest{{Audience: "orders", Details: s.Details}}
		begin(t, client, s)
		begin(t, client, spec)
		var got, plain wire.BeginRequest
		f.read(f.got(tasks)[0].body, &got)
		f.read(f.got(tasks)[1].body, &plain)
		if got.Ticket != s.Ticket || got.Ref == nil || *got.Ref != wire.Ref(s.Ref) || got.Labels["env"] != "prod" ||
			string(got.Context) != `{"intent":"export","n":2}` || len(got.AuthorizationDetails) != 1 || len(got.Tokens[0].AuthorizationDetails) != 1 {
			t.Errorf("the broker got %s", f.got(tasks)[0].body)
		}
		if plain.Ticket != "" || plain.Ref != nil || plain.Context != nil || plain.AuthorizationDetails != nil {
			t.Errorf("of nothing the broker got %s", f.got(tasks)[1].body)
		}
		for name, edit := range map[string]func(*sdk.TaskSpec){
			"context": func(s *sdk.TaskSpec) { s.Context = map[string]any{"f": func() {}} },
			"detail":  func(s *sdk.TaskSpec) { s.Details = []json.RawMessage{[]byte(`{`)} },
			"token": func(s *sdk.TaskSpec) {
				s.Tokens = []sdk.TokenRequest{{Audience: "a", Details: []json.RawMessage{[]byte("nonsense")}}}
			},
		} {
			bad := spec
			edit(&bad)
			if _, err := client.Begin(t.Context(), bad); !errors.Is(err, sdk.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := len(f.got(tasks)); n != 2 {
			t.Errorf("%d begins were sent", n)
		}
	})
}

// Tokens with other details are other tokens, also of those that came with the task.
func TestDetailsMakeAnotherToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		one, two := json.RawMessage(`{"type":"payment","n":1}`), json.RawMessage(`{"type":"payment","n":2}`)
		s := exportSpec
		s.Details = []json.RawMessage{one, two}
		s.Tokens = []sdk.TokenRequest{{Audience: "orders", Scopes: s.Scopes, Details: []json.RawMessage{one}}}
		task := begin(t, client, s)
		ask := func(details ...json.RawMessage) string {
			t.Helper()
			return must(task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: s.Scopes, Details: details}))(t).GrantID
		}
		first, none, both := ask(one), ask(), ask(one, two)
		if first == none || first == both || none == both {
			t.Errorf("with one, none and both: %s, %s, %s", first, none, both)
		}
		if f.grants != 3 || ask(json.RawMessage(`{"type": "payment", "n": 1}`)) != first || ask(two, one) != both || ask(two, one, two) != both || f.grants != 3 {
			t.Errorf("%d tokens were asked for", f.grants)
		}
		var last wire.TokenRequest
		f.read(f.got(tokens)[1].body, &last)
		if len(last.AuthorizationDetails) != 2 {
			t.Errorf("the broker got %s", f.got(tokens)[1].body)
		}
		if all := must(task.Token(t.Context(), sdk.TokenRequest{Audience: "orders"}))(t); all.GrantID == first {
			t.Error("who names neither scopes nor details got a token with details")
		}
	})
}

// notes are those of each heartbeat, by task.
func (f *fake) notes() (out []map[string]string) {
	for _, c := range f.got(heartbeats) {
		var req wire.HeartbeatRequest
		f.read(c.body, &req)
		notes := map[string]string{}
		for _, task := range req.Tasks {
			if task.Note != "" {
				notes[task.ID] = task.Note
			}
		}
		out = append(out, notes)
	}
	return out
}

func TestProgressGoesWithTheNextHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task, other := begin(t, client, spec), begin(t, client, spec)
		beat := func(want map[string]string) {
			t.Helper()
			before := len(f.notes())
			for range 1000 {
				if time.Sleep(100 * time.Millisecond); len(f.notes()) > before {
					break
				}
			}
			if len(f.notes()) == before {
				t.Fatal("no heartbeat")
			}
			if got := f.notes()[before]; !reflect.DeepEqual(got, want) {
				t.Errorf("got %q; want %q", got, want)
			}
		}
		task.Progress("1 of 3")
		task.Progress("2 of 3") // the latest wins
		synctest.Wait()
		if n := len(f.got(heartbeats)); n != 0 {
			t.Errorf("a note made %d requests", n)
		}
		beat(map[string]string{task.ID(): "2 of 3"})
		beat(map[string]string{})
		f.on(heartbeats, away)
		task.Progress("lost?")
		other.Progress("of the other")
		beat(map[string]string{task.ID(): "lost?", other.ID(): "of the other"})
		task.Progress("3 of 3")
		f.on(heartbeats, nil)
		beat(map[string]string{task.ID(): "3 of 3", other.ID(): "of the other"})
		beat(map[string]string{})
		f.on(heartbeats, func(w http.ResponseWriter, _ *http.Request) {
			refuse(w, http.StatusUnprocessableEntity, wire.Problem{Type: "x/invalid", Field: "tasks[0].note"})
		})
		task.Progress("a character of the future")
		beat(map[string]string{task.ID(): "a character of the future"})
		f.on(heartbeats, nil)
		beat(map[string]string{}) // what the broker does not take is not sent again
		if task.State() != sdk.Active {
			t.Errorf("the task is %s", task.State())
		}
		task.Progress("too late")
		must(task.Complete(t.Context()))(t)
		task.Progress("much too late")
		beat(map[string]string{})
		must(other.Complete(t.Context()))(t) // until here it is nobody's leak
	})
}

func TestProgressIsOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "",
		" \n":                               "",
		"a\nb\x1b[31m\u202ec\u200b\xff":     "a b [31m c",
		"2 of 3 “done” é 😀":                 "2 of 3 “done” é 😀",
		strings.Repeat("x", 256):            strings.Repeat("x", 256),
		strings.Repeat("x", 257):            strings.Repeat("x", 256),
		strings.Repeat("x", 255) + "é":      strings.Repeat("x", 255),
		strings.Repeat("\u202e", 300) + "x": "x",
	} {
		if got := sdk.OneLine(text); got != want {
			t.Errorf("%q became %q; want %q", text, got, want)
		}
	}
}

// However many tasks have long notes, their heartbeat is no larger than the broker takes; what finds no
// room goes with the next.
func TestNotesOfManyTasksFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		all := map[string]bool{}
		var held []*sdk.Task
		for i := range wire.MaxHeartbeat {
			task := begin(t, client, spec)
			held = append(held, task)
			if i < 50 {
				task.Progress(fmt.Sprint(i) + strings.Repeat("<", sdk.MaxNote-3))
				all[task.ID()] = true
			}
		}
		time.Sleep(3 * time.Minute)
		for _, c := range f.got(heartbeats) {
			if len(c.body) > 64<<10 {
				t.Fatalf("a heartbeat has %d bytes", len(c.body))
			}
		}
		for _, notes := range f.notes() {
			for id := range notes {
				if !all[id] {
					t.Errorf("the note of %s was sent twice", id)
				}
				delete(all, id)
			}
		}
		if len(all) != 0 {
			t.Errorf("%d notes were not sent", len(all))
		}
		runtime.KeepAlive(held)
	})
}
