package broker

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Registry is the inventory. All methods answer from one revision in memory and never block.
type Registry interface {
	// Workload returns ErrUnregistered for an ID without a registration.
	Workload(spiffeid.ID) (WorkloadRegistration, error)
	// Audience returns ErrNotFound for an unknown name.
	Audience(name string) (AudienceRegistration, error)
	// Workloads returns all registrations of workloads, in the order of their IDs. Nobody may change the list.
	Workloads() []WorkloadRegistration
	// Serves returns the audiences that have the ID among their servers, sorted.
	Serves(spiffeid.ID) []string
	// Source returns the source of ends that has the SPIFFE ID, or ErrUnregistered.
	Source(spiffeid.ID) (SourceRegistration, error)
	// SourceByToken returns the source whose token has this SHA-256, or ErrUnregistered. How long that takes
	// says nothing about any of them.
	SourceByToken(digest [sha256.Size]byte) (SourceRegistration, error)
}

// Policy answers one question. An error counts as a denial; so does the zero Decision.
type Policy interface {
	Decide(context.Context, Ask) (Decision, error)
}

// Minter turns grants into tokens in two steps, so that the audit record can name the key before
// there is a signature.
type Minter interface {
	// Draft writes the claims and picks the key. ErrSigning when there is none, ErrInvalid when the
	// token would be too large for verifiers.
	Draft(context.Context, Task, Grant) (Draft, error)
	// Retire takes a key out of use at once and stops publishing it; doing it again is no error.
	// ErrNotFound when there is no such key, ErrUnavailable when nobody can tell whether there is. ErrUnconfirmed
	// when other replicas may not know it yet, and ErrSigning when nothing can take its place yet: in both cases this
	// replica has done it.
	Retire(kid string) error
	// Deny is told of every key that the store's feed denies, since another replica may have retired
	// it: it signs nothing and is not published from then on. It must not block.
	Deny(kid string)
	// Rotate makes the next key the active one now, and returns its kid. ErrTooEarly while verifiers
	// may not have it yet, ErrUnconfirmed when it may or may not have happened.
	Rotate() (kid string, err error)
}

// Draft is a token that lacks its signature.
type Draft interface {
	// Key is the kid of the key that Sign will use.
	Key() string
	// Sign returns the token, or ErrSigning.
	Sign(context.Context) (Token, error)
}

// Auditor records events. When Record returns nil they are all durable; an error means that
// perhaps none is.
type Auditor interface {
	Record(context.Context, ...Event) error
}

// Announcer is told of everything that Store.Watch delivers, in order, and must not block.
type Announcer interface {
	Announce(Update)
	// Early is told of a denial that is in force although the store's feed does not have it, to be
	// told to everybody at once. It has no number.
	Early(Entry)
	// Settled is told when that feed has it, or nothing is left for it to kill.
	Settled(Denial)
}

// Board is what replicas tell each other that decides nothing: which verifiers are how far, and what
// operators have revoked. What is posted is there for its life and not long after, or until there is no room.
type Board interface {
	// Post puts notes up, each in the place of the one with the same Kind and ID. At most MaxNotes of a kind are
	// kept, and of more the ones that would go first anyway are lost. ErrInvalid for what BoardNote.Check
	// refuses, and nothing is put up then; else the errors of a Store.
	Post(context.Context, ...BoardNote) error
	// Notes returns all notes of a kind that are up, in no order, each with the life that it has left.
	// ErrInvalid for a kind that is none; else the errors of a Store.
	Notes(ctx context.Context, kind string) ([]BoardNote, error)
}

// Bounds of a Board.
const (
	MaxNotes     = 5000
	MaxNoteBytes = 16 << 10 // of the text
	MaxNoteKind  = 32       // bytes
	MaxNoteID    = 128      // bytes
)

// BoardNote is one thing on a Board.
type BoardNote struct {
	Kind string // small letters
	ID   string // printable ASCII
	Text []byte // opaque
	Life time.Duration
}

// Check returns ErrInvalid for a note that is outside a Board's bounds.
func (n BoardNote) Check() error {
	switch {
	case n.Kind == "":
		return invalid("kind", "is empty; name the kind of note")
	case n.ID == "":
		return invalid("id", "is empty; name the note")
	case len(n.Text) > MaxNoteBytes:
		return invalid("text", "has %d bytes; at most %d are allowed", len(n.Text), MaxNoteBytes)
	case n.Life < time.Millisecond:
		return invalid("life", "is %s; it must be a millisecond at least", n.Life)
	}
	if err := checkBytes("kind", n.Kind, MaxNoteKind, func(c byte) bool { return c >= 'a' && c <= 'z' }, "small letters"); err != nil {
		return err
	}
	return checkBytes("id", n.ID, MaxNoteID, func(c byte) bool { return c >= ' ' && c <= '~' }, "printable ASCII")
}
