package httpapi

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

func peer(n int) spiffeid.ID {
	return spiffeid.RequireFromString(fmt.Sprintf("spiffe://prod/w%d", n))
}

// TestRates: whatever comes when, a peer is never given more than its burst and its rate, and what a
// refusal says about the next request is true.
func TestRates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perSecond, burst := rapid.IntRange(1, 50).Draw(t, "rate"), rapid.IntRange(1, 50).Draw(t, "burst")
		r := newRates(perSecond, burst, func(spiffeid.ID) bool { return true })
		start := time.Unix(1_800_000_000, 0)
		now, taken := start, 0
		for range rapid.IntRange(1, 300).Draw(t, "requests") {
			now = now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "pause")) * time.Millisecond)
			wait := r.take(peer(1), now, 1)
			if wait == 0 {
				taken++
				if most := float64(burst) + now.Sub(start).Seconds()*float64(perSecond); float64(taken) > most+1e-6 {
					t.Fatalf("%d taken after %s, at %d a second with a burst of %d", taken, now.Sub(start), perSecond, burst)
				}
				continue
			}
			if taken < burst {
				t.Fatalf("refused after %d of a burst of %d", taken, burst)
			}
			if wait > time.Second/time.Duration(perSecond)+time.Microsecond {
				t.Fatalf("the next one is said to be taken in %s, at %d a second", wait, perSecond)
			}
			now = now.Add(wait + time.Microsecond)
			if r.take(peer(1), now, 1) != 0 {
				t.Fatalf("refused after the %s that it was told to wait", wait)
			}
			taken++
		}
	})
}

// TestRatesOfManyPeers: whoever shows up with many identities takes no more memory, frees nobody's
// bucket, and is in no known peer's way.
func TestRatesOfManyPeers(t *testing.T) {
	const known = maxOwnRates + 1000
	r := newRates(1, 2, func(id spiffeid.ID) bool { return id.TrustDomain().Name() == "prod" })
	now := time.Unix(1_800_000_000, 0)
	spend := func(id spiffeid.ID) (n int) {
		for r.take(id, now, 1) == 0 {
			n++
		}
		return n
	}
	if n := spend(peer(0)); n != 2 {
		t.Fatalf("a burst of 2 let %d through", n)
	}
	strangers := 0
	for i := range 5000 {
		strangers += spend(spiffeid.RequireFromString(fmt.Sprintf("spiffe://elsewhere/w%d", i)))
	}
	if strangers > 2*strangersAtOnce {
		t.Errorf("%d requests of strangers, who have a burst of %d together", strangers, 2*strangersAtOnce)
	}
	if n := spend(peer(1)); n != 2 || len(r.own) != 2 {
		t.Errorf("a known peer got %d of 2 after the strangers, and there are %d buckets", n, len(r.own))
	}
	for i := range known {
		r.take(peer(i), now, 1)
	}
	if len(r.own) != maxOwnRates {
		t.Errorf("%d buckets; at most %d are kept", len(r.own), maxOwnRates)
	}
	if r.take(peer(0), now, 1) == 0 {
		t.Error("a bucket that was empty was given up for others")
	}
	// Everybody has rested but one; there is room again, and that one's bucket is what it was.
	now = now.Add(5 * time.Second)
	spend(peer(7))
	if n := spend(peer(known)); n != 2 || len(r.own) > 3 {
		t.Errorf("a new peer got %d of 2, and there are %d buckets", n, len(r.own))
	}
	if r.take(peer(7), now, 1) == 0 {
		t.Error("a bucket that was empty was swept away")
	}
}

// TestPlaces: as many as there are places are let in, as many as may wait do, one more is refused at
// once, and those who wait are refused when their patience ends or let in when a place is free.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3
		p := newPlaces(n)
		for range n {
			if err := p.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		refused, let := make(chan time.Duration, 100), make(chan time.Duration, 100)
		wait := func() {
			if err := p.enter(t.Context()); err != nil {
				refused <- time.Since(start)
			} else {
				let <- time.Since(start)
			}
		}
		for range waitersPerPlace * n {
			go wait()
		}
		synctest.Wait()
		wait()
		if took := <-refused; took != 0 {
			t.Errorf("one too many was refused after %s", took)
		}
		time.Sleep(placeWait / 2)
		p.leave()
		synctest.Wait()
		time.Sleep(placeWait)
		synctest.Wait()
		if len(let) != 1 || len(refused) != waitersPerPlace*n-1 {
			t.Fatalf("%d let in, %d refused", len(let), len(refused))
		}
		if took := <-let; took != placeWait/2 {
			t.Errorf("let in after %s", took)
		}
		for range len(refused) {
			if took := <-refused; took != placeWait {
				t.Errorf("refused after %s", took)
			}
		}
		if len(p.waiting) != 0 || len(p.taken) != n {
			t.Errorf("%d wait, %d are in", len(p.waiting), len(p.taken))
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		if err := p.enter(gone); !errors.Is(err, errOverloaded) {
			t.Errorf("somebody who has left: %v", err)
		}
	})
}

func TestLimitsAreBounded(t *testing.T) {
	var l Limits
	if err := l.Complete(); err != nil || l.IssueRate != DefaultIssueRate || l.Others != DefaultOthers {
		t.Errorf("%+v, %v", l, err)
	}
	for _, bad := range []Limits{{IssueRate: -1}, {IssueBurst: MaxRate + 1}, {Rate: -1}, {Burst: MaxRate + 1}, {Issuing: -1}, {Others: MaxAtOnce + 1},
		{Connections: -1}, {PerAddress: MaxConnections + 1}, {Handshakes: -1}, {HandshakeTime: MinHandshakeTime - 1}, {HandshakeTime: MaxHandshakeTime + 1}, {ConnectionAge: MinConnectionAge - 1}, {ConnectionAge: MaxConnectionAge + 1}} {
		if err := bad.Complete(); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	few := Limits{Connections: 10}
	if err := few.Complete(); err != nil || few.Handshakes != 5 {
		t.Errorf("%d of 10 connections may say nothing, %v", few.Handshakes, err)
	}
	good := Limits{IssueRate: 1, IssueBurst: MaxRate, Rate: MaxRate, Burst: 1, Issuing: MaxAtOnce, Others: 1}
	if err := good.Complete(); err != nil {
		t.Error(err)
	}
}
