package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

func (h *harness) activeKey() string {
	h.t.Helper()
	signer, err := h.ring.Signer()
	if err != nil {
		h.t.Fatal(err)
	}
	return signer.KeyID()
}

// keyDenials are the entries of the feed about a key; the numbers of early ones are 0.
func (h *harness) keyDenials(kid string) []wire.FeedEntry {
	return slices.DeleteFunc(h.denied("orders"), func(e wire.FeedEntry) bool { return e.Kind != wire.KindKey || e.ID != kid })
}

func revocationOf(kid string) broker.Revocation {
	return broker.Revocation{Key: kid, Actor: "ada", Address: "192.0.2.9:1", Reason: "INC-7"}
}

// TestP11_AKeyIsRevokedWhileTheStoreIsAway: at once on the replica that is asked and its feed, which the answer says is
// not durable, and by itself everywhere else when the store is back. It is in the audit log once.
func TestP11_AKeyIsRevokedWhileTheStoreIsAway(t *testing.T) {
	for name, fault := range map[string]int32{"away": away, "hangs": hangs, "loses": loses, "stalls": stalls} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h, other := newHarness(t, store, nil), newHarness(t, store.Store, nil)
				kid := h.activeKey()
				store.all(fault)
				start := time.Now()
				receipt, err := h.Revoke(ctx, revocationOf(kid))
				if took := time.Since(start); err != nil || receipt.Durable || !receipt.First || receipt.Ended.IsZero() || !receipt.Feed.IsZero() || took > time.Second {
					t.Fatalf("after %s: %+v, %v", took, receipt, err)
				}
				if h.activeKey() == kid || len(h.keyDenials(kid)) == 0 {
					t.Error("the replica goes on with it, or its feed does not say so")
				}
				again, err := h.Revoke(ctx, revocationOf(kid))
				if err != nil || again.First || again.Event != receipt.Event || again.Durable {
					t.Errorf("again: %+v, %v", again, err)
				}
				time.Sleep(20 * time.Second)
				if fault == away && len(other.keyDenials(kid)) > 0 {
					t.Error("the other one knows of it without the store")
				}

				store.all(works)
				time.Sleep(3 * time.Second)
				for _, h := range []*harness{h, other} {
					told := h.keyDenials(kid)
					if len(told) == 0 || slices.ContainsFunc(told, func(e wire.FeedEntry) bool { return e.Number == 0 }) {
						t.Errorf("three seconds after the store is back a feed says %+v", told)
					}
				}
				events := h.audit.of(broker.EventKeyRevoked)
				if len(events) != 1 || events[0].ID != receipt.Event || events[0].Key != kid || events[0].Actor != "ada" || events[0].Unsure || !events[0].Time.Equal(receipt.Ended) {
					t.Errorf("the audit log has %+v", events)
				}
				if receipt, err := h.Revoke(ctx, revocationOf(kid)); err != nil || !receipt.Durable {
					t.Errorf("when it is back: %+v, %v", receipt, err)
				}
			})
		})
	}
}

// TestWhatIsNoKeyIsNotRevokedWhileTheStoreIsAway: a slip is not answered as if it had been done.
func TestWhatIsNoKeyIsNotRevokedWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		store.all(away)
		if receipt, err := h.Revoke(ctx, revocationOf("typo")); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%+v, %v; want ErrNotFound", receipt, err)
		}
		if len(h.keyDenials("typo")) > 0 {
			t.Error("the feed denies it")
		}
	})
}

// TestAKeyWaitsNoLongerThanItsTokensLive: then nothing is left for its denial to kill.
func TestAKeyWaitsNoLongerThanItsTokensLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		kid := h.activeKey()
		store.all(away)
		if _, err := h.Revoke(ctx, revocationOf(kid)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(broker.MaxTokenLife + broker.Margin - time.Second)
		if len(h.keyDenials(kid)) != 1 {
			t.Error("it is forgotten early")
		}
		time.Sleep(4 * time.Second)
		if told := h.keyDenials(kid); len(told) > 0 {
			t.Errorf("it is still there: %+v", told)
		}
	})
}

// TestKeysThatWaitAreBounded: as many as there is room for are revoked, and one more is refused.
func TestKeysThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, func(c *broker.Config) { c.Minter = anyKey{c.Minter} })
		store.all(away)
		for i := range 64 {
			if _, err := h.Revoke(ctx, revocationOf(fmt.Sprint("key", i))); err != nil {
				t.Fatalf("key %d of 64: %v", i+1, err)
			}
		}
		if _, err := h.Revoke(ctx, revocationOf("one more")); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("one more: %v", err)
		}
		store.all(works)
		time.Sleep(3 * time.Second)
		if _, err := h.Revoke(ctx, revocationOf("one more")); err != nil || len(h.keyDenials("key63")) == 0 {
			t.Errorf("when there is room again: %v", err)
		}
	})
}

// anyKey has had every key that it is asked to retire.
type anyKey struct{ broker.Minter }

func (anyKey) Retire(string) error { return nil }

// TestABrokerThatStopsBringsItsKeysIntoTheStore, if it is there by then.
func TestABrokerThatStopsBringsItsKeysIntoTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h, stop := startHarness(t, store, nil)
		other := newHarness(t, store.Store, nil)
		kid := h.activeKey()
		store.all(away)
		if _, err := h.Revoke(ctx, revocationOf(kid)); err != nil {
			t.Fatal(err)
		}
		store.all(works)
		stop()
		time.Sleep(time.Second)
		if len(other.keyDenials(kid)) == 0 {
			t.Error("the others are not told")
		}
	})
}
