package memory

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

var _ broker.Board = (*Store)(nil)

// posted is a note on the board.
type posted struct {
	broker.BoardNote
	until time.Time
}

// Post puts notes up, all or none of them.
func (s *Store) Post(_ context.Context, notes ...broker.BoardNote) error {
	for _, note := range notes {
		if err := note.Check(); err != nil {
			return err
		}
	}
	now := s.enter()
	defer s.mu.Unlock()
	for _, note := range notes {
		kind, ok := s.board[note.Kind]
		if !ok {
			kind = map[string]posted{}
			s.board[note.Kind] = kind
		}
		note.Text, note.Life = slices.Clone(note.Text), note.Life.Truncate(time.Millisecond)
		kind[note.ID] = posted{note, now.Add(note.Life)}
		if len(kind) > broker.MaxNotes {
			delete(kind, slices.MinFunc(slices.Collect(maps.Values(kind)), func(a, b posted) int {
				return cmp.Or(a.until.Compare(b.until), cmp.Compare(a.ID, b.ID))
			}).ID)
		}
	}
	return nil
}

// Notes returns what is up of a kind.
func (s *Store) Notes(_ context.Context, kind string) ([]broker.BoardNote, error) {
	if err := (broker.BoardNote{Kind: kind, ID: "any", Life: time.Second}).Check(); err != nil {
		return nil, err
	}
	now := s.enter()
	defer s.mu.Unlock()
	var notes []broker.BoardNote
	for _, note := range s.board[kind] {
		if now.Before(note.until) {
			note.Text, note.Life = slices.Clone(note.Text), note.until.Sub(now)
			notes = append(notes, note.BoardNote)
		}
	}
	return notes, nil
}

// takeDown takes away the notes that have passed.
func (s *Store) takeDown(now time.Time) {
	for kind, notes := range s.board {
		maps.DeleteFunc(notes, func(_ string, note posted) bool { return !now.Before(note.until) })
		if len(notes) == 0 {
			delete(s.board, kind)
		}
	}
}
