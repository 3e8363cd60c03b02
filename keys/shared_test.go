package keys_test

import (
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/keys"
)

// replicas are rings that share one record, each with its own line to it, and all running.
func replicas(t failer, n int, edit func(*keys.Config)) (stored *record, lines []*line, rings []*keys.Ring, stop func()) {
	t.Helper()
	stored = &record{offset: time.Hour} // no clock of a replica is compared with the store's
	var stops []func()
	for range n {
		l := &line{record: stored}
		config := sharing(t, l)
		if edit != nil {
			edit(&config)
		}
		ring := newRing(t, config)
		lines, rings, stops = append(lines, l), append(rings, ring), append(stops, run(t, ring))
	}
	return stored, lines, rings, func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// agree checks that all rings say the same of everything.
func agree(t failer, rings []*keys.Ring) {
	t.Helper()
	for _, ring := range rings[1:] {
		if a, b := rings[0].Keys(), ring.Keys(); !reflect.DeepEqual(a, b) {
			t.Fatalf("two replicas do not agree:\n%+v\n%+v", a, b)
		}
		if a, b := rings[0].Set(), ring.Set(); a.ETag != b.ETag {
			t.Fatalf("two replicas publish differently:\n%s\n%s", a.JSON, b.JSON)
		}
	}
}

// TestReplicasThatStartAtOnce agree on one schedule, whoever writes first.
func TestReplicasThatStartAtOnce(t *testing.T) {
	const n = 8
	stored := &record{}
	rings := make([]*keys.Ring, n)
	var starting sync.WaitGroup
	for i := range rings {
		starting.Go(func() {
			ring, err := keys.New(sharing(t, &line{record: stored}))
			if err != nil {
				t.Error(err)
			}
			rings[i] = ring
		})
	}
	starting.Wait()
	agree(t, rings)
	only(t, rings[0], keys.Active)
	only(t, rings[0], keys.Next)
	if _, version := stored.content(); version != 2 {
		t.Errorf("the record was written %d times; want one for each key", version)
	}
	token := sign(t, signer(t, rings[0]))
	for _, ring := range rings {
		if !verifies(t, parse(t, ring.Set()), token) {
			t.Error("what one signs, another's set does not verify")
		}
	}
}

// TestP11_ReplicasRotateTogether: whichever replica signs and whichever a verifier
// fetches from as rarely as it may, no valid token is refused.
func TestP11_ReplicasRotateTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, rings, stop := replicas(t, 3, func(c *keys.Config) { c.Period = 3 * time.Hour })
		defer stop()
		type signed struct {
			kid   string
			until time.Time
		}
		var alive []signed
		used := map[string]bool{}
		caches := []*cache{{}, {fetched: time.Now().Add(-20 * time.Second)}, {fetched: time.Now().Add(-40 * time.Second)}}
		for _, c := range caches {
			c.kids = published(t, rings[0])
		}
		const tick = 50 * time.Second
		for round := range int(9 * time.Hour / tick) {
			s := signer(t, rings[round%3])
			if used[s.KeyID()] = true; round%50 == 0 && !verifies(t, parse(t, rings[(round+1)%3].Set()), sign(t, s)) {
				t.Fatal("what one replica signs cannot be verified with the set of another")
			}
			alive = append(alive, signed{s.KeyID(), time.Now().Add(life)})
			for i, c := range caches {
				if ring := rings[(round/3+i)%3]; !c.accepts(t, ring, s.KeyID()) || !c.accepts(t, ring, alive[0].kid) {
					t.Fatalf("round %d: a verifier refuses a valid token", round)
				}
			}
			if time.Now().Add(tick).After(alive[0].until) {
				alive = alive[1:]
			}
			sleep(tick)
		}
		agree(t, rings)
		if len(used) != 3 {
			t.Errorf("%d keys signed in nine hours; want 3", len(used))
		}
	})
}

// TestTheScheduleOutlivesReplicas: one that starts goes on with the keys of those that have ended.
func TestTheScheduleOutlivesReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const period = time.Hour
		stored, _, rings, stop := replicas(t, 2, func(c *keys.Config) { c.Period = period })
		sleep(period / 4)
		stop()
		sleep(period / 4)
		config := sharing(t, &line{record: stored})
		config.Algorithm, config.Period = keys.ES256, period
		later := newRing(t, config)
		if got, want := signer(t, later).KeyID(), only(t, rings[0], keys.Active).ID; got != want {
			t.Errorf("it signs with %s; want %s", got, want)
		}
		// Another algorithm counts from the next key that is made.
		defer run(t, later)()
		for _, want := range []keys.Algorithm{keys.Ed25519, keys.Ed25519, keys.ES256} {
			s := signer(t, later)
			if s.Algorithm() != want || !verifies(t, parse(t, later.Set()), sign(t, s)) {
				t.Errorf("it signs with %s, or what it signs cannot be verified; want %s", s.Algorithm(), want)
			}
			sleep(period)
		}
	})
}

// TestAReplicaThatCannotRead signs for StaleTime and no longer, and publishes what it has.
func TestAReplicaThatCannotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, lines, rings, stop := replicas(t, 2, func(c *keys.Config) { c.Period = time.Hour })
		defer stop()
		sleep(30 * time.Minute)
		lines[0].set(func(l *line) { l.unread = true })
		held := signer(t, rings[0])
		sleep(keys.StaleTime - 1)
		sign(t, signer(t, rings[0]))
		sleep(1)
		s, err := rings[0].Signer()
		if !errors.Is(err, keys.ErrNoKey) || !errors.Is(err, errDown) || s != nil {
			t.Errorf("after %v: %v; want ErrNoKey with the reason", keys.StaleTime, err)
		}
		if token, err := held.Sign([]byte("{}")); !errors.Is(err, keys.ErrNoKey) || token != "" {
			t.Errorf("a signer from before: %v; want ErrNoKey", err)
		}
		set := rings[0].Set()
		sleep(2 * time.Hour) // the others rotate, and its own key would have been due and gone
		if rings[0].Set().ETag != set.ETag {
			t.Error("what it publishes has changed without it knowing anything")
		}
		if _, err := rings[0].Signer(); !errors.Is(err, keys.ErrNoKey) {
			t.Errorf("hours later: %v; want ErrNoKey", err)
		}
		lines[0].set(func(l *line) { l.unread = false })
		sleep(2 * keys.ReadInterval)
		agree(t, rings)
		if got, want := signer(t, rings[0]).KeyID(), only(t, rings[1], keys.Active).ID; got != want {
			t.Errorf("it signs with %s; want %s", got, want)
		}
	})
}

// TestASharedRingThatDoesNotRun fails closed: nothing else reads the record.
func TestASharedRingThatDoesNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, sharing(t, &line{record: &record{}}))
		sign(t, signer(t, ring))
		sleep(keys.StaleTime)
		if _, err := ring.Signer(); !errors.Is(err, keys.ErrNoKey) {
			t.Errorf("%v; want ErrNoKey", err)
		}
	})
}

// TestARecordThatCannotBeWritten keeps its active key, whatever the hour, and rotates afterwards.
func TestARecordThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored, lines, rings, stop := replicas(t, 2, func(c *keys.Config) { c.Period = time.Hour })
		defer stop()
		active := only(t, rings[0], keys.Active).ID
		for _, l := range lines {
			l.set(func(l *line) { l.unwrite = true })
		}
		for range 3 {
			sleep(time.Hour)
			for _, ring := range rings {
				if got := signer(t, ring).KeyID(); got != active {
					t.Fatalf("%s signs; want %s to stay", got, active)
				}
			}
		}
		if err := rings[0].Rotate(); !errors.Is(err, keys.ErrRecord) || !errors.Is(err, errDown) {
			t.Errorf("Rotate: %v; want ErrRecord with the reason", err)
		}
		if ring, err := keys.New(sharing(t, lines[0])); err != nil || signer(t, ring).KeyID() != active {
			t.Errorf("a replica that starts meanwhile: %v", err)
		}
		if _, err := keys.New(sharing(t, &line{record: stored, unread: true})); !errors.Is(err, keys.ErrRecord) {
			t.Errorf("a replica that cannot even read: %v; want ErrRecord", err)
		}
		if _, err := keys.New(sharing(t, &line{record: &record{}, unwrite: true})); !errors.Is(err, keys.ErrRecord) {
			t.Errorf("the first replica: %v; want ErrRecord", err)
		}
		for _, l := range lines {
			l.set(func(l *line) { l.unwrite = false })
		}
		sleep(3 * keys.ReadInterval)
		agree(t, rings)
		if only(t, rings[0], keys.Retiring).ID != active {
			t.Error("the overdue key does not retire")
		}
	})
}

// TestRotateOnOneReplica is a rotation on all, and too early before all have published the key.
func TestRotateOnOneReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, rings, stop := replicas(t, 2, nil)
		defer stop()
		next := only(t, rings[1], keys.Next).ID
		sleep(keys.DefaultPublish + keys.SettleTime - time.Nanosecond)
		if err := rings[0].Rotate(); !errors.Is(err, keys.ErrTooEarly) {
			t.Errorf("%v; want ErrTooEarly", err)
		}
		sleep(time.Nanosecond)
		if err := rings[0].Rotate(); err != nil {
			t.Fatal(err)
		}
		if got := signer(t, rings[0]).KeyID(); got != next {
			t.Errorf("%s signs where it was called; want %s", got, next)
		}
		sleep(keys.ReadInterval)
		agree(t, rings)
		if got := signer(t, rings[1]).KeyID(); got != next {
			t.Errorf("%s signs elsewhere; want %s", got, next)
		}
	})
}

// TestRemoveOnOneReplica is at once there, and elsewhere with the next reading.
func TestRemoveOnOneReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, rings, stop := replicas(t, 2, nil)
		defer stop()
		sleep(time.Minute)
		held := signer(t, rings[1])
		kid, next := held.KeyID(), only(t, rings[0], keys.Next).ID
		if err := rings[0].Remove(kid); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(published(t, rings[0]), kid) || signer(t, rings[0]).KeyID() != next {
			t.Error("it is still in use where it was removed")
		}
		sleep(keys.ReadInterval)
		agree(t, rings)
		if slices.Contains(published(t, rings[1]), kid) || signer(t, rings[1]).KeyID() != next {
			t.Error("it is still in use elsewhere")
		}
		if _, err := held.Sign([]byte("{}")); !errors.Is(err, keys.ErrNoKey) {
			t.Errorf("a signer from before: %v; want ErrNoKey", err)
		}
		for _, ring := range rings {
			only(t, ring, keys.Next)
			if k := only(t, ring, keys.Gone); k.ID != kid || !k.Removed {
				t.Errorf("what is said of it: %+v", k)
			}
			if err := ring.Remove(kid); !errors.Is(err, keys.ErrUnknownKey) {
				t.Errorf("removed again: %v; want ErrUnknownKey", err)
			}
		}
	})
}

// TestRemoveOfAKeyOfAnotherReplica: one that this replica has not read of yet.
func TestRemoveOfAKeyOfAnotherReplica(t *testing.T) {
	stored := &record{}
	l := &line{record: stored}
	first, second := newRing(t, sharing(t, &line{record: stored})), newRing(t, sharing(t, l))
	if err := first.Remove(only(t, first, keys.Next).ID); err != nil {
		t.Fatal(err)
	}
	made := only(t, first, keys.Next).ID
	l.set(func(l *line) { l.unread = true })
	if err := second.Remove(made); !errors.Is(err, keys.ErrRecord) || errors.Is(err, keys.ErrUnknownKey) {
		t.Errorf("%v; want ErrRecord: it cannot know", err)
	}
	l.set(func(l *line) { l.unread = false })
	if err := second.Remove(made); err != nil {
		t.Error(err)
	}
}

// TestRemoveWithoutTheRecord counts at once, is told, and is made up for.
func TestRemoveWithoutTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, lines, rings, stop := replicas(t, 2, nil)
		defer stop()
		kid := only(t, rings[0], keys.Active).ID
		lines[0].set(func(l *line) { l.unwrite = true })
		for range 2 { // the second time asks how it went
			if err := rings[0].Remove(kid); !errors.Is(err, keys.ErrRecord) || !errors.Is(err, errDown) {
				t.Fatalf("%v; want ErrRecord with the reason", err)
			}
			sleep(5 * keys.ReadInterval) // the record that is read says otherwise
			if slices.Contains(published(t, rings[0]), kid) || signer(t, rings[0]).KeyID() == kid {
				t.Fatal("it came back with the record")
			}
		}
		if signer(t, rings[1]).KeyID() != kid {
			t.Error("the other replica heard of it without the record")
		}
		rings[1].Deny(kid) // as from the feed
		rings[1].Deny(kid)
		if slices.Contains(published(t, rings[1]), kid) || signer(t, rings[1]).KeyID() == kid {
			t.Error("a denied key is in use")
		}
		lines[0].set(func(l *line) { l.unwrite = false })
		sleep(2 * keys.ReadInterval)
		agree(t, rings)
		if k := only(t, rings[0], keys.Gone); k.ID != kid || !k.Removed {
			t.Errorf("what is recorded of it: %+v", k)
		}
		if err := rings[0].Remove(kid); !errors.Is(err, keys.ErrUnknownKey) {
			t.Errorf("when it is done: %v; want ErrUnknownKey", err)
		}
	})
}

// TestDenyOfAnUnheardKey keeps it out when it is read of later, and there is a bound to that.
func TestDenyOfAnUnheardKey(t *testing.T) {
	stored := &record{}
	first, second := newRing(t, sharing(t, &line{record: stored})), newRing(t, sharing(t, &line{record: stored}))
	if err := first.Remove(only(t, first, keys.Next).ID); err != nil {
		t.Fatal(err)
	}
	kid := only(t, first, keys.Next).ID
	second.Deny(kid)
	for range keys.MaxRemoved - 2 { // and one that was removed before
		second.Deny(time.Now().String())
	}
	if err := second.Rotate(); !errors.Is(err, keys.ErrTooEarly) { // it reads
		t.Fatal(err)
	}
	if slices.Contains(published(t, second), kid) {
		t.Error("it was denied before it was read of, and is published")
	}
}

// TestAStoreThatLosesWrites, or everything: the replicas put back what they know, and what was
// removed does not come back.
func TestAStoreThatLosesWrites(t *testing.T) {
	for name, lose := range map[string]func(*record){"the last write": (*record).cut, "everything": (*record).lose} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stored, _, rings, stop := replicas(t, 3, nil)
				defer stop()
				sleep(keys.DefaultPublish + keys.SettleTime)
				removed := only(t, rings[0], keys.Active).ID
				if err := rings[0].Remove(removed); err != nil {
					t.Fatal(err)
				}
				sleep(2 * keys.ReadInterval)
				agree(t, rings)
				before := rings[0].Keys()
				lose(stored)
				sleep(2 * keys.ReadInterval)
				agree(t, rings)
				if got := rings[0].Keys(); !reflect.DeepEqual(got, before) {
					t.Errorf("afterwards there is\n%+v\nwant\n%+v", got, before)
				}
				if later := newRing(t, sharing(t, &line{record: stored})); slices.Contains(published(t, later), removed) {
					t.Error("a replica that starts brings the removed key back")
				}
			})
		})
	}
}

// TestAnAnswerThatIsLost: the write is done, and the replica finds it.
func TestAnAnswerThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored, lines, rings, stop := replicas(t, 2, nil)
		defer stop()
		sleep(keys.DefaultPublish + keys.SettleTime)
		next := only(t, rings[0], keys.Next).ID
		lines[0].set(func(l *line) { l.lostWord = true })
		if err := rings[0].Rotate(); !errors.Is(err, keys.ErrRecord) {
			t.Errorf("%v; want ErrRecord", err)
		}
		sleep(2 * keys.ReadInterval)
		agree(t, rings)
		if only(t, rings[0], keys.Active).ID != next {
			t.Error("the rotation that was written is not there")
		}
		_, version := stored.content()
		sleep(time.Minute)
		if _, now := stored.content(); now != version {
			t.Errorf("%d writes although nothing happens", now-version)
		}
	})
}

// TestALostRace: what another replica writes in between stands, and the change is made on top of it.
func TestALostRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, lines, rings, stop := replicas(t, 2, nil)
		defer stop()
		sleep(keys.DefaultPublish + keys.SettleTime)
		first, second := only(t, rings[0], keys.Active).ID, only(t, rings[0], keys.Next).ID
		lines[0].set(func(l *line) {
			l.between = func() {
				if err := rings[1].Rotate(); err != nil {
					t.Error(err)
				}
			}
		})
		if err := rings[0].Remove(first); err != nil {
			t.Error(err)
		}
		sleep(keys.ReadInterval)
		agree(t, rings)
		if got := only(t, rings[0], keys.Active).ID; got != second {
			t.Errorf("%s is active; want %s", got, second)
		}
		if slices.Contains(published(t, rings[1]), first) {
			t.Error("the removed key is published")
		}
	})
}

// TestTheLocalClockDoesNotMatter: it is off, and is set, and nothing happens.
func TestTheLocalClockDoesNotMatter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		offset := -5 * time.Second
		stored, _, rings, stop := replicas(t, 2, func(c *keys.Config) {
			c.Now = func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return time.Now().Add(offset).Round(0)
			}
		})
		defer stop()
		for _, at := range []time.Duration{5 * time.Second, -5 * time.Second, 0} {
			mu.Lock()
			offset = at
			mu.Unlock()
			sleep(2 * keys.ReadInterval)
			agree(t, rings)
			sign(t, signer(t, rings[0]))
		}
		// What a jump does that is too large to tell from a sleep lasts until the next reading.
		mu.Lock()
		offset = time.Hour
		mu.Unlock()
		if _, err := rings[0].Signer(); !errors.Is(err, keys.ErrNoKey) {
			t.Errorf("after an hour's jump: %v; want ErrNoKey", err)
		}
		sleep(2 * keys.ReadInterval)
		sign(t, signer(t, rings[0]))
		agree(t, rings)
		if err := rings[0].Remove(only(t, rings[0], keys.Next).ID); err != nil {
			t.Fatal(err)
		}
		store := time.Now().Add(stored.offset)
		if ahead := only(t, rings[0], keys.Next).Created.Sub(store); ahead < 0 || ahead > keys.StaleTime {
			t.Errorf("what is made then is dated %v from the store's time", ahead)
		}
	})
}
