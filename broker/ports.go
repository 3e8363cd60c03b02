package broker

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Registry is the inventory. All methods answer from one revision in memory and never block.
type Registry interface {
	// Workload returns ErrUnregistered for an ID without a registration.
	Workload(spiffeid.ID) (WorkloadRegistration, error)
	// Audience returns ErrNotFound for an unknown name.
	Audience(name string) (AudienceRegistration, error)
	// Serves returns the audiences that have the ID among their servers, sorted.
	Serves(spiffeid.ID) []string
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
	// ErrNotFound when there is no such key, ErrUnconfirmed when other replicas may not know it yet,
	// ErrSigning when nothing can take its place yet: in both cases this replica has done it.
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
	// kept, and of more the ones that would go first anyway are lost. ErrInvalid for a note over MaxNoteBytes;
	// else the errors of a Store.
	Post(context.Context, ...BoardNote) error
	// Notes returns all notes of a kind that are up, in no order.
	Notes(ctx context.Context, kind string) ([]BoardNote, error)
}

// Bounds of a Board.
const (
	MaxNotes     = 5000
	MaxNoteBytes = 16 << 10
)

// BoardNote is one thing on a Board.
type BoardNote struct {
	Kind string // small letters
	ID   string // printable ASCII, at most 128 bytes
	Text []byte // opaque
	Life time.Duration
}
