package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// Bounds of a watch.
const (
	maxWatched = 10000                  // rows
	minRetry   = 100 * time.Millisecond // before it connects again, and twice that each time that it fails
	maxRetry   = 5 * time.Second
)

// watchFormats are the values of -o where something is watched. Where stdout is no terminal, the last is the default.
var watchFormats = []string{"table", "wide", "ndjson"}

const watchHelp = `On a terminal it is a table that is drawn again and
again. Elsewhere, or with -o ndjson, it is a line for each change, as {"event":"added","item":{…}}: added,
changed, removed with the ID alone, and current once everything that was there has been told. It connects
again when the stream breaks off, and tells then what has changed meanwhile. Ctrl-C ends it with code 0.`

// watching follows a list as it changes.
type watching[Row any] struct {
	*listing[Row]
	path  string
	since func(Row) time.Time // the newest come first

	cmd   *cobra.Command
	rows  map[string]watched[Row]
	told  map[string]bool // since the stream has begun; nil when it is current
	ready bool            // it has been current once
	draw  func(status string, force bool)
}

// watched is a row as it came.
type watched[Row any] struct {
	row  Row
	text []byte
}

// errReset says that the stream is over, and another one is to be had.
var errReset = errors.New("the stream was reset")

func (w *watching[Row]) run(cmd *cobra.Command) error {
	q, err := w.query(cmd)
	if err != nil {
		return err
	}
	request := api.Request{Method: http.MethodGet, Path: w.path, Stream: true}
	if len(q) > 0 {
		request.Path += "?" + q.Encode()
	}
	if w.curl {
		return w.print(cmd, request)
	}
	if err := w.begin(cmd); err != nil {
		return err
	}
	err = w.open(cmd, func(c *api.Client) error { return w.follow(c, request) })
	if cmd.Context().Err() != nil {
		return nil // that is how it ends
	}
	return err
}

// begin decides how it is shown.
func (w *watching[Row]) begin(cmd *cobra.Command) error {
	w.cmd, w.rows = cmd, map[string]watched[Row]{}
	switch {
	case w.output == "ndjson" || isTerminal(cmd.OutOrStdout()):
	case !cmd.Flag("output").Changed && len(w.columns) == 0:
		w.output = "ndjson"
	default:
		return usage(cmd, "a table is drawn again and again on a terminal, and stdout is none: use -o ndjson")
	}
	w.draw = func(string, bool) {}
	if w.output != "ndjson" {
		w.draw = w.screen()
	}
	return nil
}

// follow keeps a stream open. What is wrong with the first one ends it, and so does a refusal that will not pass.
func (w *watching[Row]) follow(c *api.Client, request api.Request) error {
	ctx := w.cmd.Context()
	for retry := minRetry; ; retry = min(2*retry, maxRetry) {
		w.told = map[string]bool{}
		err := c.Follow(ctx, request, func(e api.Event) error {
			if w.told == nil {
				retry = minRetry
			}
			return w.take(e)
		})
		passes := errors.Is(err, errReset) || exitCodeOf(err) == exitUnreachable
		if ctx.Err() != nil || !passes || !w.ready && !errors.Is(err, errReset) {
			return err
		}
		w.draw("connecting again", true)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry/2 + rand.N(retry)):
		}
	}
}

// take takes in one event.
func (w *watching[Row]) take(e api.Event) error {
	switch e.Name {
	case wire.EventAdded, wire.EventChanged:
		return w.put(e.Data)
	case wire.EventRemoved:
		var gone struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(e.Data, &gone); err != nil {
			return fmt.Errorf("%w: an event is not what this errand knows: %w", api.ErrUnreachable, err)
		}
		return w.remove(gone.ID, e.Data)
	case wire.EventCurrent:
		return w.current()
	case wire.EventReset:
		return errReset
	}
	w.draw("", false) // a beat: times go on
	return nil
}

// put tells of a row that is new, or different. After a break that is for the rows to say, and not for the event.
func (w *watching[Row]) put(text []byte) error {
	var row Row
	if err := json.Unmarshal(text, &row); err != nil {
		return fmt.Errorf("%w: an event is not what this errand knows: %w", api.ErrUnreachable, err)
	}
	id := w.view(time.Time{}).name(row)
	if w.told != nil {
		w.told[id] = true
	}
	before, there := w.rows[id]
	if there && bytes.Equal(before.text, text) {
		return nil
	}
	if !there && len(w.rows) == maxWatched {
		return fmt.Errorf("there are more than %d %s to watch: filter them", maxWatched, w.what)
	}
	w.rows[id] = watched[Row]{row, bytes.Clone(text)}
	event := wire.EventAdded
	if there {
		event = wire.EventChanged
	}
	return w.tell(event, text)
}

func (w *watching[Row]) remove(id string, text []byte) error {
	if _, there := w.rows[id]; !there {
		return nil
	}
	delete(w.rows, id)
	return w.tell(wire.EventRemoved, text)
}

// current ends what is told of a list as it was when the stream began: what was not told is not there any more.
func (w *watching[Row]) current() error {
	for id := range w.rows {
		if w.told == nil || w.told[id] {
			continue
		}
		text, err := json.Marshal(map[string]string{"id": id})
		if err == nil {
			err = w.remove(id, text)
		}
		if err != nil {
			return err
		}
	}
	w.told = nil
	if !w.ready {
		w.ready = true
		if err := w.tell(wire.EventCurrent, []byte("{}")); err != nil {
			return err
		}
	}
	w.draw("", true)
	return nil
}

// tell writes a line for programs, or draws for people.
func (w *watching[Row]) tell(event string, item []byte) error {
	w.draw("", false)
	if w.output != "ndjson" {
		return nil
	}
	line := fmt.Appendf(nil, `{"event":%q,"item":%s}`+"\n", event, item)
	if event == wire.EventCurrent {
		line = fmt.Appendf(nil, `{"event":%q}`+"\n", event)
	}
	_, err := w.cmd.OutOrStdout().Write(audit.Printable(line))
	return err
}

// minDraw is the least time between two drawings that nobody waits for. The broker beats each second.
const minDraw = 200 * time.Millisecond

// usualLines is what a terminal shows that does not say.
const usualLines = 24

// screen returns what draws the table. It takes the lines that the terminal has, and lets the terminal cut what is
// too wide on the right, so that IDs are whole.
func (w *watching[Row]) screen() func(status string, force bool) {
	var drawn time.Time
	return func(status string, force bool) {
		now := time.Now()
		if !force && now.Sub(drawn) < minDraw || !w.ready && status == "" {
			return
		}
		drawn = now
		rows := w.sorted()
		height := max(2, lines(w.cmd.OutOrStdout())-3) // its head, the status, and the cursor's line
		more := ""
		if len(rows) > height {
			more = fmt.Sprintf(", the newest %d", height)
			rows = rows[:height]
		}
		var out bytes.Buffer
		out.WriteString("\x1b[?7l\x1b[H\x1b[2J") // do not wrap; to the top; clear
		fmt.Fprintf(&out, "%d %s%s   %s   %s\n", len(w.rows), w.what, more, now.UTC().Format(time.RFC3339), status)
		_ = w.view(now).only(w.columns).show(&out, w.output, nil, rows...) // a buffer takes everything
		out.WriteString("\x1b[?7h")
		_, _ = w.cmd.OutOrStdout().Write(out.Bytes()) // a terminal that is gone ends the program
	}
}

func (w *watching[Row]) sorted() []Row {
	rows := make([]Row, 0, len(w.rows))
	for _, r := range w.rows {
		rows = append(rows, r.row)
	}
	name := w.view(time.Time{}).name
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(w.since(b).Compare(w.since(a)), cmp.Compare(name(a), name(b)))
	})
	return rows
}
