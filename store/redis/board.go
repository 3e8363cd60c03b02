package redis

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

var _ broker.Board = (*Store)(nil)

// maxPosted bounds the notes in one run of the script, for which all others must wait.
const maxPosted = 100

// Post puts notes up in one round trip. The board is the deployment's, as a Record is. It takes none when
// memory is full. When it fails, some notes may be up.
func (s *Store) Post(ctx context.Context, notes ...broker.BoardNote) error {
	var calls []call
	for _, note := range notes {
		if err := note.Check(); err != nil {
			return err
		}
		i := slices.IndexFunc(calls, func(c call) bool { return c.echo == note.Kind && len(c.args) < 3*maxPosted })
		if i < 0 {
			i = len(calls)
			calls = append(calls, call{script: s.scripts.post, echo: note.Kind, keys: s.boardKeys(note.Kind)})
		}
		calls[i].args = append(calls[i].args, note.ID, note.Life.Milliseconds(), note.Text)
	}
	if len(calls) == 0 {
		return nil
	}
	var failure error
	done := 0
	for _, r := range s.send(ctx, calls) {
		if r.err == nil && r.status != "ok" {
			r.err = r.refusal()
		}
		if r.err == nil {
			done++
		} else if failure == nil || errors.Is(r.err, broker.ErrUnconfirmed) {
			failure = r.err
		}
	}
	if failure != nil && done > 0 {
		return unconfirmed(failure)
	}
	return failure
}

// Notes returns what is up of a kind, in as many rounds as it takes.
func (s *Store) Notes(ctx context.Context, kind string) ([]broker.BoardNote, error) {
	if err := (broker.BoardNote{Kind: kind, ID: "any", Life: time.Second}).Check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.send)
	defer cancel()
	var notes []broker.BoardNote
	seen := map[string]bool{}
	for cursor := "0"; ; {
		r := s.send(ctx, []call{{script: s.scripts.notes, echo: kind + " " + cursor, keys: s.boardKeys(kind)[:1], args: []any{cursor}}})[0]
		if r.err == nil && r.status != "ok" {
			r.err = r.refusal()
		}
		cursor = r.text()
		r.each(func(item *reply) {
			note := broker.BoardNote{Kind: kind, ID: item.text(), Life: time.Duration(item.number()) * time.Millisecond, Text: []byte(item.text())}
			if !seen[note.ID] {
				seen[note.ID] = true
				notes = append(notes, note)
			}
		})
		if r.err != nil {
			return nil, r.err
		}
		if cursor == "0" {
			return notes, nil
		}
	}
}

func (s *Store) boardKeys(kind string) []string {
	return []string{keyOf(s.prefix, 0, "board:"+kind), keyOf(s.prefix, 0, "board:"+kind+":until")}
}
