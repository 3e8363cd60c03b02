package sdk

import (
	"encoding/json"
	"strings"
	"unicode"

	"github.com/errandhq/errand/sdk/wire"
)

// MaxNote is how many bytes of a note the broker keeps.
const MaxNote = wire.MaxNote

// maxNotes bounds the bytes of notes in one heartbeat, so that it fits into one request together with
// as many tasks as there may be, with holders of one digit.
const maxNotes = 12 << 10

// Progress says in a few words how far the work is. The note goes with the next heartbeat and is shown
// with the task; one that comes before that takes its place. It is one line of at most MaxNote bytes:
// what cannot be printed becomes a space, and what is longer is cut. It costs no request and never
// waits, and after the end of the task it does nothing.
func (t *Task) Progress(note string) {
	note = oneLine(note)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.note = note
}

func oneLine(text string) string {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, " ")))
	if len(text) > MaxNote {
		text = strings.ToValidUTF8(text[:MaxNote], "")
	}
	return text
}

// takeNote returns the note that is to be sent if there is room for it, and takes the room.
func (t *task) takeNote(room *int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.note == "" {
		return ""
	}
	quoted, err := json.Marshal(t.note)
	size := len(`,"note":`) + len(quoted)
	if err != nil || size > *room {
		return ""
	}
	*room -= size
	return t.note
}

// dropNote forgets a note that need not be sent again, unless there is a newer one.
func (t *task) dropNote(sent string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.note == sent {
		t.note = ""
	}
}
