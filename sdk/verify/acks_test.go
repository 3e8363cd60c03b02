package verify_test

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// ackOf waits for an acknowledgement that is like that.
func (b *broker) ackOf(t *testing.T, what string, like func(wire.AckRequest) bool) {
	t.Helper()
	eventually(t, what, func() bool {
		for _, a := range b.acknowledged() {
			if like(a) {
				return true
			}
		}
		return false
	})
}

// TestAcknowledges what was applied: at its start, after a denial of its audience, and when the position has moved for others.
func TestAcknowledges(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 2)
	v := b.verifier(func(c *verify.Config) { c.MaxStale = 2500 * time.Millisecond })
	id := v.Status().ID
	at := func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.position.String()
	}
	mine := func(a wire.AckRequest) bool {
		return a.ID == id && id != "" && a.Position == at() && a.MaxStale == 3 && !a.Closed
	}
	b.ackOf(t, "the first one comes", mine)
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask, Shard: 1})
	b.ackOf(t, "a denial is acknowledged", mine)
	if _, err := v.Verify(t.Context(), b.token(nil), b.peer()); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("acknowledged, and not refused: %v", err)
	}
	b.change(func() { b.position = wire.Position{Epoch: epoch, Numbers: []uint64{7, 9}} })
	b.ackOf(t, "a position that has moved is acknowledged", mine)
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	acks := b.acknowledged()
	if last := acks[len(acks)-1]; last.ID != id || !last.Closed {
		t.Errorf("it did not say good-bye: %+v", last)
	}
	if _, err := v.Verify(t.Context(), b.token(func(c map[string]any) {
		c["task"], c["txn"] = map[string]any{"id": childTask, "path": []string{childTask}, "name": "n"}, childTask
	}), b.peer()); !errors.Is(err, verify.ErrStale) {
		t.Errorf("it has said good-bye, and accepts: %v", err)
	}
}

// TestAcknowledgesThatItAccepts says so: nobody can count on its refusal.
func TestAcknowledgesThatItAccepts(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	b.verifier(func(c *verify.Config) { c.OnStale = verify.Accept })
	b.ackOf(t, "one comes", func(a wire.AckRequest) bool { return a.MaxStale == 0 })
}

// TestAcknowledgementsAreCoalesced: a thousand denials make few of them, and the last one is of all.
func TestAcknowledgementsAreCoalesced(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	b.verifier(nil)
	began := time.Now()
	for range 1000 {
		b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
	}
	b.ackOf(t, "the last is acknowledged", func(a wire.AckRequest) bool { return a.Position == "1700000000000.1000" })
	// Four a second at most, the first at once, and one for what came while it was on its way.
	if n, most := len(b.acknowledged()), int(time.Since(began)/(250*time.Millisecond))+4; n > most {
		t.Errorf("%d acknowledgements in %s", n, time.Since(began))
	}
}

// TestABrokerThatTakesNoAcknowledgements, whatever it does with them, delays no check and no proof, and ends with the
// verifier.
func TestABrokerThatTakesNoAcknowledgements(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.HandlerFunc{
		"unknown":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"refused":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"overload": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"cut":      func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"hangs": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // only then is it noticed that the caller has gone
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			var asked atomic.Int64
			b.handle(wire.PathFeedAcks, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				h(w, r)
			})
			v := b.verifier(func(c *verify.Config) { c.MaxStale = verify.MinMaxStale })
			eventually(t, "an acknowledgement is tried", func() bool { return asked.Load() > 0 })
			proofs := b.asked.Load()
			began := time.Now()
			b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
			eventually(t, "the token is refused", func() bool {
				_, err := v.Verify(t.Context(), b.token(nil), b.peer())
				return errors.Is(err, verify.ErrRevoked)
			})
			eventually(t, "it proves that it is fresh", func() bool { return b.asked.Load() > proofs+3 })
			if n := asked.Load(); n > 8+time.Since(began).Milliseconds()/250 {
				t.Errorf("it has tried %d times in %s", n, time.Since(began))
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
