package sdk_test

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// routes are the requests that a broker has got since the first so many.
func (f *fake) routes(after int) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls[after:] {
		out = append(out, c.route)
	}
	return out
}

var exportSpec = sdk.TaskSpec{Name: "monthly-export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}}

// On a warm client, Do with one token is one request to begin, with the token in it, and one to end.
func TestDoWithOneTokenIsTwoRequests(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	warm := len(w.routes(0))
	err := client.Do(t.Context(), exportSpec, func(ctx context.Context, task *sdk.Task) error {
		for _, req := range []sdk.TokenRequest{ordersRead, {Audience: "orders"}} {
			if token, err := task.Token(ctx, req); err != nil || token.Secret() != secretOf(token.GrantID) || token.SVID() != w.who.svid {
				t.Errorf("got %v, %v", token, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.routes(warm); !slices.Equal(got, []string{tasks, end}) {
		t.Errorf("the broker got %v", got)
	}
}

// What is asked for with a task is what the spec says, or the only token that the task can have.
func TestFirstTokens(t *testing.T) {
	read := wire.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}}
	ttl := int64(20)
	for name, c := range map[string]struct {
		edit func(*sdk.TaskSpec)
		want []wire.TokenRequest
	}{
		"one audience and scope": {func(*sdk.TaskSpec) {}, []wire.TokenRequest{read}},
		"none":                   {func(s *sdk.TaskSpec) { s.Tokens = []sdk.TokenRequest{} }, nil},
		"two scopes":             {func(s *sdk.TaskSpec) { s.Scopes = []string{"orders:read", "orders:write"} }, nil},
		"no scopes":              {func(s *sdk.TaskSpec) { s.Scopes = nil }, nil},
		"two audiences":          {func(s *sdk.TaskSpec) { s.Audiences = []string{"orders", "files"} }, nil},
		"named": {func(s *sdk.TaskSpec) {
			s.Tokens = []sdk.TokenRequest{{Audience: "files"}, {Audience: "orders", Scopes: []string{"b", "a", "b"}, TTL: 20 * time.Second}, {Audience: "files"}}
		}, []wire.TokenRequest{{Audience: "files"}, {Audience: "orders", Scopes: []string{"a", "b"}, TTLSeconds: &ttl}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				s := exportSpec
				c.edit(&s)
				task := begin(t, client, s)
				var req wire.BeginRequest
				f.read(f.got(tasks)[0].body, &req)
				if !reflect.DeepEqual(req.Tokens, c.want) {
					t.Errorf("asked for %+v; want %+v", req.Tokens, c.want)
				}
				for _, ask := range s.Tokens {
					must(task.Token(t.Context(), ask))(t)
				}
				if n := len(f.got(tokens)); n != 0 {
					t.Errorf("%d more tokens were asked for", n)
				}
				must(task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"other"}}))(t)
				must(task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}, Fresh: true}))(t)
				if n := len(f.got(tokens)); n != 2 {
					t.Errorf("%d tokens were asked for; want 2", n)
				}
			})
		})
	}
	client := newWorld(t).client(t)
	bad := exportSpec
	bad.Tokens = []sdk.TokenRequest{{}}
	if _, err := client.Begin(t.Context(), bad); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// A first token that is no good, or is not there since the begin was repeated, is asked for again.
func TestFirstTokensThatAreNone(t *testing.T) {
	for name, spoil := range map[string]func(*wire.BeginResponse){
		"missing":  func(r *wire.BeginResponse) { r.Tokens = nil },
		"bad type": func(r *wire.BeginResponse) { r.Tokens[0].TokenType = "mac" },
		"expired":  func(r *wire.BeginResponse) { r.Tokens[0].ExpiresIn = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				f.on(tasks, func(w http.ResponseWriter, r *http.Request) {
					var answer wire.BeginResponse
					f.read(recorded(f.answer, r), &answer)
					spoil(&answer)
					reply(w, http.StatusCreated, answer)
				})
				task := begin(t, client, exportSpec)
				must(task.Token(t.Context(), ordersRead))(t)
				if n := len(f.got(tokens)); n != 1 {
					t.Errorf("%d tokens were asked for", n)
				}
			})
		})
	}
}

// Each field that a task leaves at zero is that of the defaults.
func TestDefaultsFillEveryField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		defaults := sdk.TaskSpec{Purpose: "why not", Lease: 20 * time.Second, Deadline: time.Minute, Audiences: []string{"orders"}, Tokens: []sdk.TokenRequest{}}
		client, _ := inBubble(t, f, sdk.WithDefaults(defaults))
		begin(t, client, sdk.TaskSpec{Name: "a", Scopes: []string{"orders:read"}, Lease: 10 * time.Second})
		var req wire.BeginRequest
		f.read(f.got(tasks)[0].body, &req)
		if req.Name != "a" || req.Purpose != "why not" || *req.LeaseSeconds != 10 || *req.DeadlineSeconds != 60 ||
			!slices.Equal(req.Audiences, defaults.Audiences) || !slices.Equal(req.Scopes, []string{"orders:read"}) || req.Tokens != nil {
			t.Errorf("began %+v", req)
		}
	})
}
