package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
)

// Board checks a store that is a broker.Board too.
func Board(t *testing.T, b Backend) {
	runCases(t, b, []testCase{
		{"board/notes", boardNotes},
		{"board/a note in the place of another", boardAgain},
		{"board/a note passes", boardPasses},
		{"board/many notes", boardMany},
		{"board/bounds", boardBounds},
	})
}

func (b *bench) board() broker.Board { return b.store.(broker.Board) }

func (b *bench) post(notes ...broker.BoardNote) {
	b.Helper()
	if err := b.board().Post(b.Context(), notes...); err != nil {
		b.Fatalf("Post: %v", err)
	}
}

// notes are those of a kind in the order of their IDs, without their lives, which must be in bounds.
func (b *bench) notes(kind string, life time.Duration) []broker.BoardNote {
	b.Helper()
	notes, err := b.board().Notes(b.Context(), kind)
	if err != nil {
		b.Fatalf("Notes: %v", err)
	}
	for i := range notes {
		if left := notes[i].Life; left <= 0 || left > life {
			b.Fatalf("%s is to live for %s more; want %s at most", notes[i].ID, left, life)
		}
		notes[i].Life = 0
	}
	slices.SortFunc(notes, func(x, y broker.BoardNote) int { return strings.Compare(x.ID, y.ID) })
	return notes
}

func boardNotes(b *bench) {
	b.same("an empty board", len(b.notes("verifier", 0)), 0)
	b.post()
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	one := broker.BoardNote{Kind: "verifier", ID: "a", Text: every, Life: time.Minute}
	two := broker.BoardNote{Kind: "verifier", ID: "spiffe://example.org/ {x}~", Life: time.Minute}
	other := broker.BoardNote{Kind: "revocation", ID: "a", Text: []byte("other"), Life: time.Minute}
	b.post(one, other, two)
	for _, n := range []*broker.BoardNote{&one, &two, &other} {
		n.Life = 0
	}
	b.same("of one kind", b.notes("verifier", time.Minute), []broker.BoardNote{one, two})
	b.same("of the other", b.notes("revocation", time.Minute), []broker.BoardNote{other})
	b.same("of none", len(b.notes("other", 0)), 0)
	every[0] = 1 // the board has its own
	b.same("as it was posted", b.notes("verifier", time.Minute)[0].Text[0], byte(0))
}

func boardAgain(b *bench) {
	note := func(text string, life time.Duration) broker.BoardNote {
		return broker.BoardNote{Kind: "verifier", ID: "a", Text: []byte(text), Life: life}
	}
	b.post(note("1", time.Second), note("2", time.Hour))
	b.same("of one call, the later one", string(b.notes("verifier", time.Hour)[0].Text), "2")
	b.post(note("3", 300*time.Millisecond))
	b.same("the later one", string(b.notes("verifier", 300*time.Millisecond)[0].Text), "3")
	b.Advance(300 * time.Millisecond)
	b.same("when the later one has passed", len(b.notes("verifier", 0)), 0)
}

func boardPasses(b *bench) {
	b.post(broker.BoardNote{Kind: "verifier", ID: "short", Life: 300 * time.Millisecond},
		broker.BoardNote{Kind: "verifier", ID: "long", Life: time.Minute})
	b.Advance(300 * time.Millisecond)
	b.same("what is left", b.notes("verifier", time.Minute), []broker.BoardNote{{Kind: "verifier", ID: "long"}})
}

func boardMany(b *bench) {
	var notes []broker.BoardNote
	for i := range broker.MaxNotes + 3 {
		notes = append(notes, broker.BoardNote{
			Kind: "verifier", ID: fmt.Sprintf("%04d", i), Text: fmt.Appendf(nil, "note %d", i), Life: time.Hour + time.Duration(i)*time.Second,
		})
	}
	b.post(notes[3:]...)
	b.post(broker.BoardNote{Kind: "revocation", ID: "of another kind", Life: time.Minute})
	all := b.notes("verifier", 3*time.Hour)
	if len(all) != broker.MaxNotes || string(all[7].Text) != "note 10" {
		b.Fatalf("got %d notes, and %+v; want %d", len(all), all[7], broker.MaxNotes)
	}
	// One that would go first does not come in; of the others, the first that would go makes room.
	b.post(notes[0])
	b.same("no room for the first", b.notes("verifier", 3*time.Hour), all)
	b.post(broker.BoardNote{Kind: "verifier", ID: "last", Life: 3 * time.Hour})
	rest := b.notes("verifier", 3*time.Hour)
	if len(rest) != broker.MaxNotes || rest[0].ID != all[1].ID || rest[len(rest)-1].ID != "last" {
		b.Fatalf("got %d notes from %s to %s; want %d from %s to last", len(rest), rest[0].ID, rest[len(rest)-1].ID, broker.MaxNotes, all[1].ID)
	}
	b.same("of another kind", len(b.notes("revocation", time.Minute)), 1)
}

func boardBounds(b *bench) {
	good := broker.BoardNote{
		Kind: strings.Repeat("k", broker.MaxNoteKind), ID: strings.Repeat("~", broker.MaxNoteID),
		Text: bytes.Repeat([]byte{0xff}, broker.MaxNoteBytes), Life: time.Minute,
	}
	b.post(good)
	good.Life = 0
	b.same("as large as may be", b.notes(good.Kind, time.Minute), []broker.BoardNote{good})
	for what, change := range map[string]func(*broker.BoardNote){
		"no kind":            func(n *broker.BoardNote) { n.Kind = "" },
		"a kind in capitals": func(n *broker.BoardNote) { n.Kind = "Kind" },
		"a long kind":        func(n *broker.BoardNote) { n.Kind += "k" },
		"no ID":              func(n *broker.BoardNote) { n.ID = "" },
		"an ID with a tab":   func(n *broker.BoardNote) { n.ID = "a\tb" },
		"a long ID":          func(n *broker.BoardNote) { n.ID += "~" },
		"a long text":        func(n *broker.BoardNote) { n.Text = append(n.Text, 0) },
		"no life":            func(n *broker.BoardNote) { n.Life = 0 },
		"less than a life":   func(n *broker.BoardNote) { n.Life = -time.Second },
	} {
		bad := good
		bad.Life = time.Minute
		change(&bad)
		err := b.board().Post(b.Context(), broker.BoardNote{Kind: "verifier", ID: "with it", Life: time.Minute}, bad)
		if !errors.Is(err, broker.ErrInvalid) {
			b.Errorf("%s: error %v; want ErrInvalid", what, err)
		}
	}
	for _, kind := range []string{"", "Kind", "a}b", strings.Repeat("k", broker.MaxNoteKind+1)} {
		if notes, err := b.board().Notes(b.Context(), kind); !errors.Is(err, broker.ErrInvalid) {
			b.Errorf("notes of the kind %q: %v, error %v; want ErrInvalid", kind, notes, err)
		}
	}
	b.same("what came with those", len(b.notes("verifier", 0)), 0)
}
