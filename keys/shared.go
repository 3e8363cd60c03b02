package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// The times of shared keys.
const (
	// ReadInterval is how often Run reads the record.
	ReadInterval = time.Second
	// RecordTimeout bounds a read or write of it.
	RecordTimeout = time.Second
	// StaleTime is how old a replica's last reading may be. After that it signs nothing, since its
	// active key may have been replaced or removed; what it publishes stays as it is.
	StaleTime = 10 * time.Second
	// SettleTime is allowed for a change to reach every replica that still signs, including a write
	// that the store was slow to do: a shared key is published for so much longer before it signs, and
	// after it was retired.
	SettleTime = time.Minute
)

// maxAttempts bounds how often a change is made again because another replica has written first. One
// of those that write at once succeeds, and mostly that has done what the others were about to do.
const maxAttempts = 20

var errContended = errors.New("other replicas keep writing it")

// view is what a ring has read of the shared record. The ring's mu guards it.
type view struct {
	value    []byte   // as it was read or written, so that it is opened only when it has changed
	recorded schedule // in it

	sent, got time.Time // by this machine's clock: when the last reading began and ended
	store     time.Time // by the store's clock, somewhere in between
	latest    time.Time // that has ever been now
	failure   error     // of the last attempt
}

// now is the ring's clock: this machine's in memory, and the store's for shared keys, as far as that
// must have come. It runs for StaleTime after a reading, however far this machine's clock jumps, and
// never goes back.
func (r *Ring) now() time.Time {
	local := r.config.Now()
	if r.config.Shared == nil {
		return local
	}
	v := &r.view
	if now := v.store.Add(min(local.Sub(v.got), StaleTime)); now.After(v.latest) {
		v.latest = now
	}
	return v.latest
}

// fresh returns ErrNoKey when this replica cannot know whether its keys are still good. The monotonic
// clock stands still while a machine sleeps, the other may be set: the greater age counts.
func (r *Ring) fresh() error {
	if r.config.Shared == nil {
		return nil
	}
	local := r.config.Now()
	age := max(local.Sub(r.view.sent), local.Round(0).Sub(r.view.sent.Round(0)))
	if age < StaleTime {
		return nil
	}
	why := r.view.failure
	if why == nil {
		why = ErrRecord
	}
	return fmt.Errorf("%w: the shared record was last read %v ago, and %v is the most: %w", ErrNoKey, age.Round(time.Millisecond), StaleTime, why)
}

// share is update for shared keys: read, change, and write if that is another one and nobody has
// written meanwhile; else again.
func (r *Ring) share(ctx context.Context, change func(schedule, time.Time) (schedule, error)) error {
	r.recording.Lock()
	defer r.recording.Unlock()
	for range maxAttempts {
		version, err := r.read(ctx)
		if err != nil {
			return err
		}
		current, recorded, now := r.current()
		wanted, err := change(current.advance(now).lengthen(r.config.tail()), now)
		if err != nil || wanted.same(recorded) {
			return err
		}
		if swapped, err := r.write(ctx, wanted, version); swapped || err != nil {
			return err
		}
	}
	return r.failed(fmt.Errorf("%w: %w", ErrRecord, errContended))
}

func (r *Ring) current() (current, recorded schedule, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now = r.advance()
	return r.schedule, r.view.recorded, now
}

// read takes over what is recorded, and returns its version.
func (r *Ring) read(ctx context.Context) (version uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	sent := r.config.Now()
	value, version, now, err := r.config.Shared.Record.Read(ctx)
	got := r.config.Now()
	if err != nil {
		return 0, r.failed(fmt.Errorf("%w: read: %w", ErrRecord, err))
	}
	recorded, err := r.open(value, version)
	if err != nil {
		return 0, r.failed(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh := r.fresh() == nil
	r.view.sent, r.view.got, r.view.store, r.view.failure = sent, got, now, nil
	r.view.value, r.view.recorded = value, recorded
	// A store can lose its last writes, or all. Who was there puts back what it knows, so that no key
	// is lost that has signed. Who was away for long adopts what others have made of it meanwhile.
	if lost := recorded.revision < r.schedule.revision; !lost || version != 0 && !fresh {
		r.adopt(recorded)
	}
	return version, nil
}

// adopt goes by another schedule, but for the keys that were ever removed. It is called with mu held.
func (r *Ring) adopt(s schedule) {
	for _, k := range s.gone {
		if k.Removed {
			r.remember(k.ID)
		}
	}
	now := r.now()
	for _, kid := range r.removed {
		s = s.remove(kid, now)
	}
	r.show(s.expire(now))
}

// open decodes a value, unless it is the one that was read or written last.
func (r *Ring) open(value []byte, version uint64) (schedule, error) {
	if version == 0 {
		return schedule{}, nil
	}
	r.mu.Lock()
	known, recorded := r.view.value != nil && bytes.Equal(value, r.view.value), r.view.recorded
	r.mu.Unlock()
	if known {
		return recorded, nil
	}
	return r.config.decode(value)
}

// write replaces the record, and goes by what it says from then on.
func (r *Ring) write(ctx context.Context, s schedule, version uint64) (swapped bool, err error) {
	s.revision++
	value, err := r.config.encode(s)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	swapped, err = r.config.Shared.Record.Write(ctx, value, version)
	if err != nil {
		return false, r.failed(fmt.Errorf("%w: write: %w", ErrRecord, err))
	}
	if swapped {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.view.value, r.view.recorded = value, s
		r.adopt(s)
	}
	return swapped, nil
}

// failed remembers an error, for those who ask why nothing is signed.
func (r *Ring) failed(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.view.failure = err
	return err
}
