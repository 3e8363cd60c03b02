package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// Silence is how long a stream that says nothing is taken to be alive. The broker beats each second.
const Silence = 10 * time.Second

// maxLine bounds a line of a stream, in bytes.
const maxLine = 1 << 20

// Event is one server-sent event: its name, and its data in one line.
type Event struct {
	Name string
	Data []byte // valid until the next one
}

// errSilent says that nothing has come for Silence.
var errSilent = errors.New("it has said nothing for " + Silence.String())

// Follow asks for a stream, and hands each event to a function until that returns an error, which Follow
// returns as it is. It does not come back without one. Errors: *Refusal, ErrUnreachable also for a stream
// that has ended, the context's.
func (c *Client) Follow(ctx context.Context, r Request, each func(Event) error) (err error) {
	var failed error
	for _, base := range c.bases {
		begun := false
		err := c.follow(ctx, base, r, func(e Event) error { begun = true; return each(e) })
		if begun || !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return err
		}
		failed = joinLines(failed, err)
	}
	return failed
}

func (c *Client) follow(ctx context.Context, base string, r Request, each func(Event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(CallTimeout, func() { cancel(errSilent) })
	defer silence.Stop()
	request, err := http.NewRequestWithContext(ctx, r.Method, strings.TrimSuffix(base, "/")+r.Path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", wire.TypeEvents)
	response, err := c.http.Do(request)
	if err != nil {
		return c.unreachable(orCause(ctx, err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != wire.TypeEvents {
		text, err := answer(response)
		if err == nil {
			err = fmt.Errorf("%w: what answers at %s has no stream of events, but %d bytes of %q", ErrUnreachable, base, len(text), response.Header.Get("Content-Type"))
		}
		return err
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	err = readEvents(lines, func() { silence.Reset(Silence) }, each)
	if stopped := context.Cause(ctx); stopped != nil && !errors.Is(stopped, errSilent) {
		return stopped
	}
	if failed := lines.Err(); failed != nil || err == nil {
		return fmt.Errorf("%w: the stream has ended: %w", ErrUnreachable, orCause(ctx, errors.Join(failed, errEnded)))
	}
	return err
}

// errEnded says that a stream is over.
var errEnded = errors.New("the broker has closed it")

// orCause is why a context was canceled, if it was.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// readEvents reads until the lines or the function's patience end: HTML Living Standard §9.2.6, of which the
// broker uses one line of data for an event, and comments.
func readEvents(lines *bufio.Scanner, alive func(), each func(Event) error) error {
	var e Event
	for lines.Scan() {
		alive()
		line := lines.Bytes()
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0:
			if e.Data != nil {
				if err := each(e); err != nil {
					return err
				}
			}
			e = Event{}
		case string(name) == "event":
			e.Name = string(value)
		case string(name) == "data":
			e.Data = append([]byte{}, value...)
		}
	}
	return nil
}
