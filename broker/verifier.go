package broker

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of the verifiers that a replica knows. One more is refused, and keeps nobody from ending anything.
const (
	MaxVerifiers          = MaxNotes // ErrCrowded
	MaxVerifiersPerServer = 256      // of one SPIFFE ID; ErrQuota

	// VerifierSilence is after how long a verifier is forgotten of which nothing was heard.
	VerifierSilence = time.Minute

	MaxAckID      = 64 // bytes
	MaxAckVersion = 64
	MaxAckStale   = time.Minute // the longest that a verifier may believe what it knows
)

// Ack is a verifier's word that everything up to a position of the feed is in force there.
type Ack struct {
	ID       string // of the instance, which has made it up at its start
	Position Position

	// MaxStale is how long the verifier accepts tokens without news of the feed; 0 if it accepts them until they
	// expire.
	MaxStale time.Duration

	Version string // of its program; may be empty
	Closed  bool   // it accepts nothing any more, and is not heard of again
}

// VerifierState is a verifier as of its last acknowledgement, to whichever replica.
type VerifierState struct {
	ID       string
	Workload spiffeid.ID
	Audience string
	Position Position
	SeenAt   time.Time // by the clock of the replica that has heard it
	MaxStale time.Duration
	Version  string
}

// Behind is how many changes of the feed the verifier has not confirmed at a position.
func (s VerifierState) Behind(at Position) (n uint64) {
	for shard, number := range at.Numbers {
		switch {
		case s.Position.Epoch != at.Epoch || shard >= len(s.Position.Numbers):
			n += number
		case number > s.Position.Numbers[shard]:
			n += number - s.Position.Numbers[shard]
		}
	}
	return n
}

// Acknowledge takes in how far a server of the audience is: the caller has made sure that it is one. Nobody's
// word counts for anybody but the instances of its own SPIFFE ID. A position that this replica's view of the feed has not reached is waited for a
// moment, since a verifier may follow another replica. Errors: ErrInvalid; ErrEpoch for a position of another data set; ErrNotReady
// for one that is still ahead; ErrQuota and ErrCrowded for one verifier more than are remembered.
func (b *Broker) Acknowledge(ctx context.Context, w Workload, audience string, a Ack) error {
	if err := a.validate(); err != nil {
		return err
	}
	key := verifierKey{w.ID, audience, a.ID}
	if a.Closed {
		b.verifiers.close(key, b.Now())
		return nil
	}
	if err := b.view.reach(ctx, a.Position); err != nil {
		return err
	}
	return b.verifiers.heard(VerifierState{
		ID: a.ID, Workload: w.ID, Audience: audience, Position: a.Position.Clone(), SeenAt: b.Now(), MaxStale: a.MaxStale, Version: a.Version,
	})
}

func (a Ack) validate() error {
	switch {
	case a.ID == "" || len(a.ID) > MaxAckID || strings.ContainsFunc(a.ID, notBatchRune):
		return invalid("id", "must be 1 to %d letters, digits, - and _, random at the verifier's start", MaxAckID)
	case len(a.Version) > MaxAckVersion || strings.ContainsFunc(a.Version, notGraphic):
		return invalid("version", "must be at most %d bytes of printable ASCII without space", MaxAckVersion)
	case a.MaxStale < 0 || a.MaxStale > MaxAckStale:
		return invalid("max_stale", "is %d; it must be 0 to %d seconds", a.MaxStale/time.Second, MaxAckStale/time.Second)
	}
	return nil
}

func notGraphic(r rune) bool { return r <= ' ' || r > '~' }

// Verifiers returns those that were heard within VerifierSilence, by any replica, sorted, and how far the feed is
// here. Errors: ErrNotReady, and those of the Board, when nobody can say who else there is.
func (b *Broker) Verifiers(ctx context.Context) (at Position, _ []VerifierState, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	if at = b.view.reached(); at.IsZero() {
		return at, nil, notReady("the store's feed has not been read yet")
	}
	if err := b.readBoard(ctx); err != nil {
		return at, nil, err
	}
	all := b.verifiers.list(b.Now())
	slices.SortFunc(all, func(x, y VerifierState) int {
		return strings.Compare(x.Audience+"\n"+x.Workload.String()+"\n"+x.ID, y.Audience+"\n"+y.Workload.String()+"\n"+y.ID)
	})
	return at, all, nil
}

// KnownVerifiers is how many this replica knows.
func (b *Broker) KnownVerifiers() int { return b.verifiers.count() }
