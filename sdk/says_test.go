package sdk_test

import (
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
