package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/spf13/cobra"
)

// Bounds of a list.
const (
	pageSize     = 100    // items asked for at once
	defaultLimit = 1000   // items shown unless --limit says otherwise
	maxLimit     = 100000 // of --limit
)

// anyState is the --state that filters nothing.
const anyState = "any"

// listing is what the commands have in common that list something of the operator listener, page by page.
type listing[Row any] struct {
	asking
	what   string // in the plural
	view   func(now time.Time) table[Row]
	limit  int
	states []string
	filter selecting
}

// filters adds the flags that say what is listed, with the states that there are. The first one is the default.
func (l *listing[Row]) filters(cmd *cobra.Command, states ...string) {
	l.filter.flags(cmd, selectors)
	states = append(states, anyState)
	cmd.Flags().StringArrayVar(&l.states, "state", states[:1], "of "+oneOf(states)+"; repeat for more")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		for _, state := range l.states {
			if !slices.Contains(states, state) {
				return usage(cmd, "--state is %q; it is one of %s", state, oneOf(states))
			}
		}
		return before(cmd, args)
	}
}

func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func (l *listing[Row]) limitFlag(cmd *cobra.Command) {
	cmd.Flags().IntVar(&l.limit, "limit", defaultLimit, fmt.Sprintf("how many at most, 1 to %d; stderr says when there are more", maxLimit))
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if l.limit < 1 || l.limit > maxLimit {
			return usage(cmd, "--limit is %d; it must be 1 to %d", l.limit, maxLimit)
		}
		return before(cmd, args)
	}
}

// query is what the filters say.
func (l *listing[Row]) query(cmd *cobra.Command) (url.Values, error) {
	s, err := l.filter.resolve(cmd)
	if err != nil {
		return nil, err
	}
	out := query(s)
	if !slices.Contains(l.states, anyState) {
		out["state"] = l.states
	}
	return out, nil
}

// page is one of a list, of whatever.
type page struct {
	Items []json.RawMessage `json:"items"`
	Next  string            `json:"next_cursor,omitempty"`
}

// fetch asks for pages until there are enough items, or no more. It returns them in one page.
func (l *listing[Row]) fetch(cmd *cobra.Command, path string, q url.Values) (all page, err error) {
	all.Items = []json.RawMessage{}
	err = l.open(cmd, func(c *api.Client) error {
		for {
			var next page
			if _, err := l.sendOn(cmd, c, l.pageOf(path, q, all), &next); err != nil {
				return err
			}
			if next.Next != "" && next.Next == all.Next {
				return fmt.Errorf("%w: its list goes in circles", api.ErrUnreachable)
			}
			all = page{append(all.Items, next.Items...), next.Next}
			if all.Next == "" || len(all.Items) >= l.limit {
				return nil
			}
		}
	})
	return all, err
}

// pageOf is the request for the page after what is there.
func (l *listing[Row]) pageOf(path string, q url.Values, after page) api.Request {
	q.Set("page_size", strconv.Itoa(min(pageSize, l.limit-len(after.Items))))
	if after.Next != "" {
		q.Set("cursor", after.Next)
	}
	return api.Request{Method: http.MethodGet, Path: path + "?" + q.Encode()}
}

// list shows what there is at a path.
func (l *listing[Row]) list(cmd *cobra.Command, path string, q url.Values) error {
	if l.curl {
		return l.print(cmd, l.pageOf(path, q, page{}))
	}
	all, err := l.fetch(cmd, path, q)
	if err != nil {
		return err
	}
	rows, text, err := decodePage[Row](all)
	if err != nil {
		return err
	}
	l.tellMore(cmd, all)
	return l.view(time.Now()).only(l.columns).show(cmd.OutOrStdout(), l.output, text, rows...)
}

// tellMore says that there is more.
func (l *listing[Row]) tellMore(cmd *cobra.Command, all page) {
	if all.Next != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "errand: there are more %s than these %d: filter them, or have more with --limit\n", l.what, len(all.Items))
	}
}

// decodePage returns the rows of a page, and its JSON.
func decodePage[Row any](all page) ([]Row, []byte, error) {
	rows := make([]Row, len(all.Items))
	var failed error
	for i, item := range all.Items {
		failed = errors.Join(failed, json.Unmarshal(item, &rows[i]))
	}
	if failed != nil {
		return nil, nil, fmt.Errorf("%w: its list is not what this errand knows: %w", api.ErrUnreachable, failed)
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // as the broker has written it
	err := encoder.Encode(all)
	return rows, text.Bytes(), err
}

// showOne shows one object of the operator listener by its ID.
func showOne[Row any](a *asking, cmd *cobra.Command, path string, view func(time.Time) table[Row]) error {
	var row Row
	text, err := a.send(cmd, api.Request{Method: http.MethodGet, Path: path}, &row)
	if err != nil {
		return err
	}
	return view(time.Now()).show(cmd.OutOrStdout(), a.output, text, row)
}

// oneID is for commands that are about one thing, by its ID.
func oneID(what, prefix string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || len(args[0]) <= len(prefix) || args[0][:len(prefix)] != prefix {
			return usage(cmd, "name one %s by its ID, as %s00gybxqbdwiuxgoxp7eqvjcyoumu", what, prefix)
		}
		return nil
	}
}
