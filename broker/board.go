package broker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// boardVerifiers is the kind of the notes about verifiers.
const boardVerifiers = "verifier"

const (
	// boardInterval is how often replicas tell each other what is new, and look while somebody waits.
	boardInterval = 100 * time.Millisecond
	// boardPace is the least time between two readings of the Board.
	boardPace = 10 * time.Millisecond
)

// boardVerifier is a note about a verifier.
type boardVerifier struct {
	ID       string        `json:"i"`
	Workload string        `json:"w"`
	Audience string        `json:"a"`
	Epoch    uint64        `json:"e,omitempty"`
	Numbers  []uint64      `json:"n,omitempty"`
	SeenAt   time.Time     `json:"t"`
	MaxStale time.Duration `json:"s,omitempty"`
	Version  string        `json:"v,omitempty"`
	Closed   bool          `json:"c,omitempty"`
}

// note puts a verifier among those that the Board is told of. It is called with mu held.
func (v *verifiers) note(s VerifierState, closed bool) {
	if _, there := v.changed[s.key()]; !there && len(v.changed) >= MaxVerifiers {
		return // the Board is away for long; whoever lives is heard of again
	}
	v.changed[s.key()] = boardVerifier{
		ID: s.ID, Workload: s.Workload.String(), Audience: s.Audience, Epoch: s.Position.Epoch, Numbers: s.Position.Numbers,
		SeenAt: s.SeenAt, MaxStale: s.MaxStale, Version: s.Version, Closed: closed,
	}
}

// text has a name that is made of all that the note is about, since a SPIFFE ID may be longer than a name.
func (n boardVerifier) text() BoardNote {
	sum := sha256.Sum256([]byte(strings.Join([]string{n.Workload, n.Audience, n.ID}, "\n")))
	return BoardNote{Kind: boardVerifiers, ID: base64.RawURLEncoding.EncodeToString(sum[:]), Text: plainJSON(n), Life: VerifierSilence}
}

// shareVerifiers tells the other replicas of the verifiers that are heard here, and reads what those have told while
// somebody waits, until ctx ends. A Board that is away costs confirmations, and nothing else.
func (b *Broker) shareVerifiers(ctx context.Context) error {
	tick := time.NewTicker(boardInterval)
	defer tick.Stop()
	away := Fault{Logger: b.Logger, What: "replicas cannot tell each other about verifiers; ends go on, and are not confirmed by those that other replicas hear", Over: "replicas tell each other about verifiers again"}
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			err = b.postVerifiers(ctx)
			if b.verifiers.wanted(b.Now()) && err == nil {
				err = b.readVerifiers(ctx)
			}
		case <-b.verifiers.ask:
			err = b.readVerifiers(ctx)
			pause(ctx, boardPace)
		}
		switch {
		case err == nil:
			away.Ended(b.Now())
		case ctx.Err() == nil:
			away.Met(b.Now(), err)
			b.verifiers.readingFailed(err)
			pause(ctx, boardInterval)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// postVerifiers writes what is new.
func (b *Broker) postVerifiers(ctx context.Context) error {
	changed := b.verifiers.take()
	if len(changed) == 0 {
		return nil
	}
	notes := make([]BoardNote, 0, len(changed))
	for _, n := range changed {
		notes = append(notes, n.text())
	}
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	err := b.Board.Post(ctx, notes...)
	if err != nil {
		b.verifiers.giveBack(changed)
	}
	return err
}

// readVerifiers takes in what the other replicas have written.
func (b *Broker) readVerifiers(ctx context.Context) error {
	reading := b.verifiers.begins()
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	notes, err := b.Board.Notes(ctx, boardVerifiers)
	if err != nil {
		return err
	}
	for _, note := range notes {
		if s, closed, ok := parseVerifier(note.Text); ok {
			b.verifiers.told(s, closed, b.Now())
		}
	}
	b.verifiers.ends(reading)
	return nil
}

// parseVerifier reads a note. One that makes no sense is of a replica of another version, and is left out.
func parseVerifier(text []byte) (s VerifierState, closed, ok bool) {
	var n boardVerifier
	if json.Unmarshal(text, &n) != nil {
		return s, false, false
	}
	id, err := spiffeid.FromString(n.Workload)
	a := Ack{ID: n.ID, MaxStale: n.MaxStale, Version: n.Version}
	if err != nil || a.validate() != nil || len(n.Numbers) > MaxShards {
		return s, false, false
	}
	return VerifierState{
		ID: n.ID, Workload: id, Audience: n.Audience, Position: Position{Epoch: n.Epoch, Numbers: n.Numbers},
		SeenAt: n.SeenAt, MaxStale: n.MaxStale, Version: n.Version,
	}, n.Closed, true
}

// readBoard has the Board read anew, and waits for that.
func (b *Broker) readBoard(ctx context.Context) error {
	v := &b.verifiers
	v.mu.Lock()
	v.waiting++
	reading := v.want()
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.waiting--
	}()
	for {
		v.mu.Lock()
		news, good, read, failed := v.news, v.good, v.read, v.failed
		v.mu.Unlock()
		switch {
		case good >= reading:
			return nil
		case read >= reading:
			return failed
		}
		select {
		case <-news:
		case <-ctx.Done():
			return &wrapped{ErrUnavailable, "other replicas' verifiers did not become known in time"}
		}
	}
}

// take returns what the Board does not have, which counts as told from then on.
func (v *verifiers) take() map[verifierKey]boardVerifier {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.changed) == 0 {
		return nil
	}
	changed := v.changed
	v.changed = map[verifierKey]boardVerifier{}
	return changed
}

// giveBack undoes a take, but for what is newer by now.
func (v *verifiers) giveBack(changed map[verifierKey]boardVerifier) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k, n := range changed {
		if _, newer := v.changed[k]; !newer && len(v.changed) < MaxVerifiers {
			v.changed[k] = n
		}
	}
}

// want asks for a reading that begins after now, and returns its number. It is called with mu held.
func (v *verifiers) want() uint64 {
	v.asked++
	select {
	case v.ask <- struct{}{}:
	default:
	}
	return v.asked
}

// wanted reports whether somebody waits, and drops who has been silent for too long.
func (v *verifiers) wanted(now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget(now)
	return v.waiting > 0
}

// begins returns the number of a reading that begins now.
func (v *verifiers) begins() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked
}

// ends notes that a reading has succeeded.
func (v *verifiers) ends(reading uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fresh := v.good < reading
	v.read, v.good, v.failed = reading, reading, nil
	if fresh {
		v.wake()
	}
}

// readingFailed notes that the Board is away.
func (v *verifiers) readingFailed(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.read, v.failed = v.asked, err
	v.wake()
}

// ownBoard is the Board of a replica that shares none.
type ownBoard struct {
	now func() time.Time

	mu    sync.Mutex // guards what follows
	notes map[string]map[string]ownNote
}

// ownNote is a note with its end.
type ownNote struct {
	BoardNote
	until time.Time
}

// Post implements Board.
func (b *ownBoard) Post(_ context.Context, notes ...BoardNote) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for _, n := range notes {
		if err := n.Check(); err != nil {
			return err
		}
		of := b.notes[n.Kind]
		if of == nil {
			of = map[string]ownNote{}
			b.notes[n.Kind] = of
		}
		if _, there := of[n.ID]; !there && len(of) >= MaxNotes {
			b.makeRoom(of)
		}
		of[n.ID] = ownNote{n, now.Add(n.Life)}
	}
	return nil
}

// makeRoom drops the note that would go first. It is called with mu held.
func (b *ownBoard) makeRoom(of map[string]ownNote) {
	first := ""
	for id, n := range of {
		if first == "" || n.until.Before(of[first].until) {
			first = id
		}
	}
	delete(of, first)
}

// Notes implements Board.
func (b *ownBoard) Notes(_ context.Context, kind string) ([]BoardNote, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	var out []BoardNote
	for id, n := range b.notes[kind] {
		if !now.Before(n.until) {
			delete(b.notes[kind], id)
			continue
		}
		n.Life = n.until.Sub(now)
		out = append(out, n.BoardNote)
	}
	return out, nil
}
