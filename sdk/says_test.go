package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// The text of an error goes to the broker only where WithErrorText says so.
func TestFailWithErrorText(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		opts []sdk.EndOption
		want string
	}{
		"without": {fs.ErrExist, nil, "*errors.errorString"},
		"with":    {fmt.Errorf("4711: %w", fs.ErrExist), []sdk.EndOption{sdk.WithErrorText()}, "*errors.errorString: 4711: file already exists"},
		"nil":     {nil, []sdk.EndOption{sdk.WithErrorText()}, ""},
		"long":    {errors.New(strings.Repeat("ä", 600)), []sdk.EndOption{sdk.WithErrorText()}, "*errors.errorString: " + strings.Repeat("ä", 501)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				must(begin(t, client, spec).Fail(t.Context(), c.err, c.opts...))(t)
				var req wire.EndRequest
				f.read(f.got(end)[0].body, &req)
				if req.Reason != c.want {
					t.Errorf("the broker was told %q (%d bytes)", req.Reason, len(req.Reason))
				}
			})
		})
	}
}

// An end that somebody else has made says who, as far as the broker tells.
func TestEndedErrorSaysWhy(t *testing.T) {
	for cause, want := range map[string]string{
		"operator": "revoked by an operator", "identity": "its identity was withdrawn", "parent": "the task that it is part of has ended", "": "task revoked; begin",
	} {
		t.Run(cause, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				task := begin(t, client, spec)
				state, is := wire.StateRevoked, error(sdk.ErrRevoked)
				if cause == "parent" {
					state, is = wire.StateCanceled, sdk.ErrParentEnded
				}
				f.on(heartbeats, func(w http.ResponseWriter, _ *http.Request) {
					reply(w, 200, wire.HeartbeatResponse{Tasks: []wire.Pulse{{ID: task.ID(), State: state, Cause: cause}}})
				})
				time.Sleep(15 * time.Second)
				_, err := task.Token(t.Context(), ordersRead)
				if !errors.Is(err, is) || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v; want %q", err, want)
				}
			})
		})
	}
}

// When the time is over, or the caller leaves, the error has what the broker said before: in a pause, and in a try that
// is not answered any more.
func TestTheLastAnswerIsSaid(t *testing.T) {
	for name, answered := range map[string]time.Duration{"in a pause": time.Hour, "in a try": time.Second, "in the first try": 0} {
		for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
			t.Run(fmt.Sprintf("%s, %v", name, want), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake(t)
					client, _ := inBubble(t, f)
					start := time.Now()
					f.on(tasks, func(w http.ResponseWriter, r *http.Request) {
						if time.Since(start) >= answered {
							hang(w, r)
						}
						away(w, r)
					})
					ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
					if want == context.Canceled {
						time.AfterFunc(3*time.Second, cancel)
					}
					defer cancel()
					_, err := client.Begin(ctx, spec)
					if took := time.Since(start); took < 3*time.Second || took > 4*time.Second || !errors.Is(err, want) {
						t.Fatalf("after %s: %v", took, err)
					}
					var said *sdk.Error
					if errors.As(err, &said) != (answered > 0) || said != nil && (said.Title != "Not ready" || !strings.Contains(err.Error(), said.Title)) {
						t.Errorf("it says %v", err)
					}
				})
			})
		}
	}
}
