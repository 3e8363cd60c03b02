package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
)

// TestFollow: a stream's events come one by one, and the end says how it came.
func TestFollow(t *testing.T) {
	stream := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if accept := r.Header.Get("Accept"); accept != wire.TypeEvents {
				t.Errorf("it accepts %q", accept)
			}
			w.Header().Set("Content-Type", wire.TypeEvents)
			_, _ = io.WriteString(w, text)
		}
	}
	enough, stopped := errors.New("enough"), errors.New("stopped")
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		events []string
		want   error // nil: a refusal
		text   string
	}{
		"two, and the end":    {stream("event: added\nid: 7\ndata: {\"a\":1}\n\n: hello\n\nevent: beat\r\ndata:{}\r\n\r\n"), []string{`added {"a":1}`, "beat {}"}, api.ErrUnreachable, "the stream has ended"},
		"it ends within one":  {stream("event: added\ndata: {}\n"), nil, api.ErrUnreachable, "the stream has ended"},
		"enough is heard":     {stream("event: enough\ndata: {}\n\nevent: more\ndata: {}\n\n"), []string{"enough {}"}, enough, "enough"},
		"the reader is gone":  {stream("event: stop\ndata: {}\n\nevent: more\ndata: {}\n\n"), []string{"stop {}"}, stopped, "stopped"},
		"a line that is huge": {stream("data: " + strings.Repeat("x", 1<<20) + "\n\n"), nil, api.ErrUnreachable, "token too long"},
		"no stream":           {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }, nil, api.ErrUnreachable, "has no stream of events"},
		"a refusal": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", wire.TypeProblem)
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"type":"https://a/problems/role-required","title":"T","status":403}`)
		}, nil, nil, "the broker refused: T"},
	} {
		t.Run(name, func(t *testing.T) {
			url, dir := listener(t, test.answer)
			c, err := open(t, map[string]string{"ERRAND_OPERATOR_URL": url, "ERRAND_BROKER_ID": brokerID, "ERRAND_IDENTITY_DIR": dir})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			var events []string
			err = c.Follow(ctx, api.Request{Method: "GET", Path: wire.PathGrants, Stream: true}, func(e api.Event) error {
				events = append(events, e.Name+" "+string(e.Data))
				switch e.Name {
				case "enough":
					return enough
				case "stop":
					stop(stopped)
					return ctx.Err()
				}
				return nil
			})
			var refused *api.Refusal
			if errors.As(err, &refused) != (test.want == nil) || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v", err)
			}
			if !slices.Equal(events, test.events) {
				t.Errorf("events %q, want %q", events, test.events)
			}
		})
	}
}

// TestFollowIsInterrupted while nothing comes.
func TestFollowIsInterrupted(t *testing.T) {
	url, dir := listener(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", wire.TypeEvents)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	c, err := open(t, map[string]string{"ERRAND_OPERATOR_URL": url, "ERRAND_BROKER_ID": brokerID, "ERRAND_IDENTITY_DIR": dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- c.Follow(ctx, api.Request{Method: "GET", Path: wire.PathGrants, Stream: true}, func(api.Event) error { return nil })
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
