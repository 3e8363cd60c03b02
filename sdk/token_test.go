package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

func TestTokenIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var cached []bool
		client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
			OnIssue: func(_ context.Context, _ *sdk.Token, c bool, _ time.Duration) { cached = append(cached, c) },
		}))
		task := begin(t, client, spec)
		ask := func(req sdk.TokenRequest) string { return must(task.Token(t.Context(), req))(t).GrantID }
		one := ask(sdk.TokenRequest{Audience: "orders", Scopes: []string{"b", "a", "b"}})
		if ask(sdk.TokenRequest{Audience: "orders", Scopes: []string{"a", "b"}}) != one {
			t.Error("the order of scopes makes a difference")
		}
		others := []sdk.TokenRequest{
			{Audience: "orders"}, {Audience: "files", Scopes: []string{"a", "b"}}, {Audience: "orders", Scopes: []string{"a"}},
			{Audience: "orders", Scopes: []string{"a", "b"}, TTL: 10 * time.Second},
		}
		for _, req := range others {
			if ask(req) == one {
				t.Errorf("%+v gets the same token", req)
			}
		}
		if ask(sdk.TokenRequest{Audience: "orders", Scopes: []string{"a", "b"}, Fresh: true}) == one {
			t.Error("Fresh gets the token in memory")
		}
		if want := []bool{false, true, false, false, false, false, false}; !slices.Equal(cached, want) {
			t.Errorf("the hook got %v; want %v", cached, want)
		}
	})
}

func TestTokenFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, who := inBubble(t, f)
		f.on(tokens, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			f.answer(w, r)
		})
		task := begin(t, client, spec)
		asked := time.Now()
		token := must(task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"b", "a"}, TTL: 20 * time.Second}))(t)
		if !token.Expires.Equal(asked.Add(20 * time.Second)) {
			t.Errorf("it expires %s after the question; want 20 s, wherever the answer was", token.Expires.Sub(asked))
		}
		if token.Audience != "orders" || !slices.Equal(token.Scopes, []string{"a", "b"}) || !token.Bound || !slices.Equal(token.Hosts, []string{"orders.internal"}) {
			t.Errorf("got %+v", *token)
		}
		if token.SVID() != who.svid || (sdk.Token{}).SVID() != nil {
			t.Errorf("its SVID is %v", token.SVID())
		}
		if token.Secret() != secretOf(token.GrantID) || token.Header() != "Bearer "+token.Secret() {
			t.Errorf("the secret is %q", token.Secret())
		}
	})
}

func TestOneFlightForEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.on(tokens, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			f.answer(w, r)
		})
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		var all sync.WaitGroup
		// The first caller leaves: the others must not suffer from that.
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := task.Token(ctx, ordersRead); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		for range 100 {
			all.Go(func() {
				if _, err := task.Token(t.Context(), ordersRead); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := len(f.got(tokens)); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// Before two thirds: from memory. From there: from memory, and renewed behind. In the last tenth:
// the caller waits.
func TestTokenIsRenewedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		first := must(task.Token(t.Context(), ordersRead))(t)
		f.on(tokens, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			f.answer(w, r)
		})
		at := func(d time.Duration) *sdk.Token {
			time.Sleep(time.Until(first.Expires.Add(d - time.Minute)))
			return must(task.Token(t.Context(), ordersRead))(t)
		}
		if at(35*time.Second) != first || len(f.got(tokens)) != 1 {
			t.Error("it was renewed before 2/3 - 10 %")
		}
		before := time.Now()
		if at(45*time.Second) != first {
			t.Error("the caller waited for the renewal")
		}
		synctest.Wait()
		if len(f.got(tokens)) != 2 {
			t.Errorf("it was not renewed at 2/3 + 10 %% (%s)", time.Since(before))
		}
		if at(46*time.Second+1) == first {
			t.Error("the renewed token is not used")
		}
	})
}

// TestRenewalsAreSpread: tokens of one life that were got at one moment are renewed at 2/3 of it ± 10 %,
// each at a moment of its own.
func TestRenewalsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, step = 20, 100 * time.Millisecond
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		began := time.Now()
		for ; time.Since(began) < 45*time.Second; time.Sleep(step) {
			for i := range many {
				must(task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{fmt.Sprint("s", i)}}))(t)
			}
			synctest.Wait()
		}
		got := f.got(tokens)
		if len(got) != 2*many {
			t.Fatalf("%d requests for %d tokens", len(got), many)
		}
		first, last := got[many].at.Sub(began), got[2*many-1].at.Sub(began)
		if first < 36*time.Second || last > 44*time.Second+step || last-first < time.Second {
			t.Errorf("they were renewed from %s to %s", first, last)
		}
	})
}

func TestTokenInItsLastTenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		first := must(task.Token(t.Context(), ordersRead))(t)
		f.on(tokens, away)
		time.Sleep(54*time.Second - 1)
		if got := must(task.Token(t.Context(), ordersRead))(t); got != first {
			t.Error("it is another one before the last tenth")
		}
		time.Sleep(time.Nanosecond)
		if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrUnavailable) {
			t.Errorf("in the last tenth, without a broker: %v", err)
		}
		f.on(tokens, nil)
		if got := must(task.Token(t.Context(), ordersRead))(t); got == first {
			t.Error("it is the old one")
		}
	})
}

// A renewal that fails is not tried again with every call.
func TestRenewalIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		must(task.Token(t.Context(), ordersRead))(t)
		time.Sleep(45 * time.Second)
		f.on(tokens, func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, wire.Problem{Type: "x/denied"}) })
		for range 30 {
			must(task.Token(t.Context(), ordersRead))(t)
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(f.got(tokens)); n < 3 || n > 5 {
			t.Errorf("%d requests in 3 s", n)
		}
	})
}

func TestWallClockDoesNotMatter(t *testing.T) {
	for name, skew := range map[string]time.Duration{"behind": -time.Hour, "a little ahead": 15 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				c := &clocks{}
				client, _ := inBubble(t, f, c.option())
				task := begin(t, client, spec)
				first := must(task.Token(t.Context(), ordersRead))(t)
				c.wall.Add(int64(skew))
				if must(task.Token(t.Context(), ordersRead))(t) != first || task.State() != sdk.Active {
					t.Errorf("the token was dropped, or the task: %s", task.State())
				}
			})
		})
	}
}

func TestTokenErrors(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   error
		tries  int
		over   bool
	}{
		"denied": {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, wire.Problem{Type: "x/denied"}) }, sdk.ErrDenied, 1, false},
		"ended": {func(w http.ResponseWriter, _ *http.Request) {
			refuse(w, 410, wire.Problem{Type: "x/task-ended", State: "revoked"})
		}, sdk.ErrRevoked, 1, true},
		"unknown":  {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 404, wire.Problem{Type: "x/not-found"}) }, sdk.ErrTaskEnded, 1, true},
		"away":     {away, sdk.ErrUnavailable, 3, false},
		"down":     {down, sdk.ErrUnavailable, 3, false},
		"hang":     {hang, sdk.ErrUnavailable, 2, false},
		"not JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, sdk.ErrUnavailable, 3, false},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere/", http.StatusFound)
		}, nil, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				task := begin(t, client, spec)
				f.on(tokens, c.answer)
				token, err := task.Token(t.Context(), ordersRead)
				if token != nil || err == nil || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("got %v, %v", token, err)
				}
				if n := len(f.got(tokens)); n != c.tries {
					t.Errorf("%d tries; want %d", n, c.tries)
				}
				if over := task.State() != sdk.Active; over != c.over {
					t.Errorf("the task is %s", task.State())
				}
				if sdk.Cached(task) != 0 {
					t.Error("a failure was kept")
				}
			})
		})
	}
}

// What is no token is refused before it can get into a header.
func TestTokenAnswersThatAreNone(t *testing.T) {
	good := wire.TokenResponse{AccessToken: "eyJ.x.y", TokenType: "Bearer", ExpiresIn: 60, GrantID: "gnt_1"}
	for name, edit := range map[string]func(*wire.TokenResponse){
		"empty":           func(r *wire.TokenResponse) { r.AccessToken = "" },
		"header":          func(r *wire.TokenResponse) { r.AccessToken = "x\r\nX-Admin: 1" },
		"too long":        func(r *wire.TokenResponse) { r.AccessToken = strings.Repeat("x", wire.MaxTokenBytes+1) },
		"other type":      func(r *wire.TokenResponse) { r.TokenType = "DPoP" },
		"dead":            func(r *wire.TokenResponse) { r.ExpiresIn = 0 },
		"almost eternal":  func(r *wire.TokenResponse) { r.ExpiresIn = 1 << 62 },
		"before it began": func(r *wire.TokenResponse) { r.ExpiresIn = -60 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				answer := good
				f.on(tokens, func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, answer) })
				task := begin(t, client, spec)
				must(task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"good"}}))(t)
				edit(&answer)
				if token, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrUnavailable) {
					t.Errorf("got %v, %v", token, err)
				}
			})
		})
	}
	// The longest one is good.
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		longest := good
		longest.AccessToken = strings.Repeat("x", wire.MaxTokenBytes)
		f.on(tokens, func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, longest) })
		must(begin(t, client, spec).Token(t.Context(), ordersRead))(t)
	})
}

func TestTokenRequestsThatAreWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		for _, req := range []sdk.TokenRequest{
			{}, {Audience: "orders", Scopes: []string{"a b"}}, {Audience: "orders", Scopes: []string{""}},
			{Audience: "orders", TTL: -time.Second}, {Audience: "orders", TTL: 100 * time.Millisecond},
		} {
			if _, err := task.Token(t.Context(), req); !errors.Is(err, sdk.ErrInvalid) {
				t.Errorf("%+v: %v", req, err)
			}
		}
		if n := len(f.got(tokens)); n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestTokenAfterTheEndAlwaysFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		must(task.Token(t.Context(), ordersRead))(t)
		// The end is being asked for, and not confirmed: it counts from the call.
		f.on(end, hang)
		go func() { _, _ = task.Complete(t.Context()) }()
		synctest.Wait()
		if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("during the end: %v", err)
		}
		if sdk.Cached(task) != 0 {
			t.Error("the token is still in memory")
		}
		// One that was on its way when the end came does not get through either.
		other := begin(t, client, spec)
		f.on(tokens, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			f.answer(w, r)
		})
		got := make(chan error)
		go func() {
			_, err := other.Token(context.Background(), ordersRead)
			got <- err
		}()
		synctest.Wait()
		go func() { _, _ = other.Complete(t.Context()) }()
		if err := <-got; !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("on its way: %v", err)
		}
	})
}

func TestTokensInMemoryAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		ask := func(i int) *sdk.Token {
			return must(task.Token(t.Context(), sdk.TokenRequest{Audience: fmt.Sprint("a", i)}))(t)
		}
		first := ask(0)
		time.Sleep(time.Second)
		second := ask(1)
		for i := 2; i < sdk.MaxCached; i++ {
			ask(i)
		}
		if sdk.Cached(task) != sdk.MaxCached || ask(0) != first {
			t.Errorf("%d tokens at the limit", sdk.Cached(task))
		}
		ask(sdk.MaxCached)
		if n := sdk.Cached(task); n != sdk.MaxCached {
			t.Errorf("%d tokens past the limit", n)
		}
		if ask(1) != second || ask(0) == first {
			t.Error("it was not the oldest that had to go")
		}
	})
}

// After a rotation the token that is there is still handed out with its own SVID, also while the
// broker is away, and the next is asked for with the new one at once.
func TestRotationReplacesBoundTokensBeforeTheOldCertificateLeavesUse(t *testing.T) {
	for binding, bound := range map[string]bool{"certificate": true, "identity": false, "none": false} {
		t.Run(binding, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				f.binding = binding
				ca := must(devmode.NewCA("example.org", devmode.Options{}))(t)
				who := newIdentity(t, ca)
				client := inBubbleAs(t, f, who)
				task := begin(t, client, spec)
				first := must(task.Token(t.Context(), ordersRead))(t)
				old := first.SVID()
				who.change(func(i *identity) { i.svid = must(ca.Issue(reportID, 0))(t) })
				f.on(tokens, down)
				if second := must(task.Token(t.Context(), ordersRead))(t); second != first || second.SVID() != old {
					t.Error("the token that was there is not handed out")
				}
				f.on(tokens, nil)
				time.Sleep(3 * time.Second)
				must(task.Token(t.Context(), ordersRead))(t)
				synctest.Wait()
				third := must(task.Token(t.Context(), ordersRead))(t)
				if (third != first) != bound {
					t.Errorf("another token: %v", third != first)
				}
				if bound && third.SVID() != who.svid {
					t.Error("it was asked for with the old SVID")
				}
			})
		})
	}
}

// When the bundles change, too, nothing goes over what the old ones vouch for.
func TestRemovedAuthorityDropsBoundTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, who := inBubble(t, newFake(t))
		task := begin(t, client, spec)
		first := must(task.Token(t.Context(), ordersRead))(t)
		other := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		who.change(func(i *identity) { i.svid, i.bundle = must(other.Issue(reportID, 0))(t), other.Bundle() })
		if second := must(task.Token(t.Context(), ordersRead))(t); second == first || second.SVID() != who.svid {
			t.Error("the token of before was handed out")
		}
	})
}

func TestAnotherIdentityIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		ca := must(devmode.NewCA("example.org", devmode.Options{}))(t)
		who := newIdentity(t, ca)
		client := inBubbleAs(t, f, who)
		task := begin(t, client, spec)
		who.change(func(i *identity) { i.svid = must(ca.Issue(ordersID, 0))(t) })
		if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrNoIdentity) {
			t.Errorf("got %v", err)
		}
		if err := client.Healthy(); !errors.Is(err, sdk.ErrNoIdentity) {
			t.Errorf("Healthy: %v", err)
		}
		who.change(func(i *identity) { i.svid = must(ca.Issue(reportID, time.Minute))(t) })
		if err := client.Healthy(); err != nil {
			t.Errorf("Healthy: %v", err)
		}
		time.Sleep(time.Minute + 1)
		if err := client.Healthy(); !errors.Is(err, sdk.ErrNoIdentity) {
			t.Errorf("Healthy with an expired SVID: %v", err)
		}
	})
}

func TestTokensAreRedacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := inBubble(t, newFake(t))
		task := begin(t, client, spec)
		token := must(task.Token(t.Context(), ordersRead))(t)
		hidden := struct{ token sdk.Token }{*token}
		hiddenPtr := struct{ token *sdk.Token }{token}
		var log strings.Builder
		for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
			slog.New(h).Info("x", "p", token, "v", *token, "hidden", hidden, "task", task.ID())
		}
		texts := []string{log.String()}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p"} {
			texts = append(texts, fmt.Sprintf(verb, token), fmt.Sprintf(verb, *token), fmt.Sprintf(verb, hidden), fmt.Sprintf(verb, hiddenPtr),
				fmt.Sprintf(verb, []*sdk.Token{token}), fmt.Sprintf(verb, map[string]sdk.Token{"k": *token}))
		}
		for _, v := range []any{token, *token, hidden, []any{token}, map[string]any{"t": token}} {
			texts = append(texts, string(must(json.Marshal(v))(t)))
		}
		texts = append(texts, string(must(token.MarshalText())(t)), token.String(), token.GoString(), fmt.Sprint(errors.New(token.String())))
		for _, text := range texts {
			if strings.Contains(text, token.Secret()) || strings.Contains(text, fmt.Sprintf("%x", token.Secret())) || strings.Contains(text, "c2lnbmF0dXJl") {
				t.Errorf("the secret is in %q", text)
			}
		}
		if got := fmt.Sprintf("%v %+v %#v %s", token, *token, token, *token); got != strings.TrimSpace(strings.Repeat("grant "+token.GrantID+" ", 4)) {
			t.Errorf("it formats as %q", got)
		}
		if (sdk.Token{}).Secret() != "" {
			t.Error("an empty token has a secret")
		}
	})
}

// What Bundle returns follows the source, and is the caller's own.
func TestBundleIsThatOfNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, who := inBubble(t, f)
		first := must(client.Bundle())(t)
		first.SetX509Authorities(nil)
		if got := must(client.Bundle())(t); !got.Equal(who.bundle) {
			t.Error("a caller has changed the client's bundle")
		}
		who.change(func(i *identity) { i.bundle = must(devmode.NewCA("example.org", devmode.Options{}))(t).Bundle() })
		if got := must(client.Bundle())(t); !got.Equal(who.bundle) {
			t.Error("the bundle is an old one")
		}
		who.change(func(i *identity) { i.err = errors.New("gone") })
		if _, err := client.Bundle(); !errors.Is(err, sdk.ErrNoIdentity) {
			t.Errorf("without an SVID: %v", err)
		}
	})
}
