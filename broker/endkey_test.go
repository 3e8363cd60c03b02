package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// TestAnEndKeyEndsItsTaskAlone: without the store no other key does, and none that is too old.
func TestAnEndKeyEndsItsTaskAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		stranger := newHarness(t, newFaulty(t), nil) // a replica with another secret
		mine, other := h.begin(report, withToken), h.begin(report, withToken)
		short := h.begin(report, func(r *broker.BeginRequest) { r.Deadline = 10 * time.Second })
		foreign := stranger.begin(report, withToken)
		store.all(away)
		for name, test := range map[string]struct {
			workload string
			key      broker.EndKey
		}{
			"no key":             {report, broker.EndKey{}},
			"another task's":     {report, other.EndKey},
			"another replica's":  {report, foreign.EndKey},
			"another workload's": {night, mine.EndKey},
		} {
			if r, err := h.tryEnd(test.workload, mine.Task.ID, test.key); err == nil {
				t.Errorf("%s: %+v", name, r)
			}
		}
		want(t, func() error { _, err := h.tryEnd(report, foreign.Task.ID, foreign.EndKey); return err }(), broker.ErrUnavailable)
		time.Sleep(10*time.Second + broker.Margin)
		if r, err := h.tryEnd(report, short.Task.ID, short.EndKey); err == nil {
			t.Errorf("a key of which every token has expired: %+v", r)
		}
		if r, err := h.tryEnd(report, mine.Task.ID, mine.EndKey); err != nil || r.Durable {
			t.Errorf("the right key: %+v, %v", r, err)
		}
		// While the store answers, identity decides.
		store.all(works)
		time.Sleep(2 * time.Second)
		if r, err := h.tryEnd(report, other.Task.ID, mine.EndKey); err != nil || !r.Durable {
			t.Errorf("the wrong key, and a store that knows better: %+v, %v", r, err)
		}
	})
}

// TestALostTaskEndsByItsKeyAlone: what a failover has lost is denied at every verifier.
func TestALostTaskEndsByItsKeyAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := []byte(strings.Repeat("s", broker.EndKeySecretSize))
		shared := func(c *broker.Config) { c.EndKeySecret = secret }
		before, after := newHarness(t, newFaulty(t), shared), newHarness(t, newFaulty(t), shared)
		lost := before.begin(report, withToken)
		id := lost.Task.ID
		_, err := after.tryEnd(report, id, broker.EndKey{})
		want(t, err, broker.ErrNotFound)
		_, err = after.tryEnd(night, id, lost.EndKey)
		want(t, err, broker.ErrNotFound)
		receipt, err := after.tryEnd(report, id, lost.EndKey)
		if err != nil || !receipt.Durable || receipt.State != broker.Completed {
			t.Fatalf("%+v, %v", receipt, err)
		}
		if !after.names("files", string(id)) || !after.names("orders", string(id)) {
			t.Error("not everybody is told")
		}
		if ends := after.audit.of(broker.EventTaskLost); len(ends) != 1 || ends[0].ID != receipt.Event || ends[0].Owner != "team-fin" {
			t.Errorf("the audit log has %+v", ends)
		}
		if again := after.end(report, id); again.Event != receipt.Event || again.First {
			t.Errorf("repeated: %+v", again)
		}
	})
}

// TestEndsOfWhatTheStoreDoesNotHaveAreBounded: a store forgets a task soon after its end, and by its
// key it could be ended again, with a denial that every verifier must keep for a while. A workload that
// collects such keys must not fill what the others need as well.
func TestEndsOfWhatTheStoreDoesNotHaveAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var later atomic.Int64 // how far this replica's clock is ahead
		h := newHarness(t, newFaulty(t), func(c *broker.Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		})
		day := func(r *broker.BeginRequest) { r.Deadline = broker.MaxDeadline }
		var mine []broker.Begun
		for range broker.MaxLostEnds + 1 {
			begun := h.begin(report, day)
			h.end(report, begun.Task.ID)
			mine = append(mine, begun)
		}
		others := h.begin(night, day)
		h.end(night, others.Task.ID)
		time.Sleep(2 * broker.Margin)
		if n := len(h.denied("files")); n != 0 {
			t.Fatalf("%d entries of tasks that had no token", n)
		}
		for i, begun := range mine {
			_, err := h.tryEnd(report, begun.Task.ID, begun.EndKey)
			if over := i == broker.MaxLostEnds; over != errors.Is(err, broker.ErrNotFound) {
				t.Fatalf("end %d of one workload: %v", i, err)
			}
		}
		if r, err := h.tryEnd(report, mine[0].Task.ID, mine[0].EndKey); err != nil || r.First {
			t.Errorf("repeated: %+v, %v", r, err)
		}
		if n := len(h.denied("files")); n != broker.MaxLostEnds {
			t.Errorf("%d entries", n)
		}
		if _, err := h.tryEnd(night, others.Task.ID, others.EndKey); err != nil {
			t.Errorf("another workload's: %v", err)
		}
		live := h.begin(report, withToken)
		if r, err := h.tryEnd(report, live.Task.ID, live.EndKey); err != nil || !r.First {
			t.Errorf("one that the store has: %+v, %v", r, err)
		}
		last := mine[broker.MaxLostEnds]
		later.Store(int64(broker.MaxTokenLife - 2*broker.Margin)) // which have passed already
		_, err := h.tryEnd(report, last.Task.ID, last.EndKey)
		want(t, err, broker.ErrNotFound)
		later.Store(int64(broker.MaxTokenLife - broker.Margin))
		if _, err := h.tryEnd(report, last.Task.ID, last.EndKey); err != nil {
			t.Errorf("when the first are over: %v", err)
		}
	})
}

func TestTheEndKeySecretIsChecked(t *testing.T) {
	store, err := memory.New(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, broker.EndKeySecretSize - 1, broker.EndKeySecretSize + 1} {
		_, err := broker.New(broker.Config{
			Store: store, Registry: noRegistry{}, Policy: noPolicy{}, Minter: noMinter{}, Auditor: &recorder{}, Announcer: noAnnouncer{},
			EndKeySecret: make([]byte, size),
		})
		if err == nil || !strings.Contains(err.Error(), "EndKeySecret") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// Parts that are never called.
type (
	noRegistry  struct{ broker.Registry }
	noPolicy    struct{ broker.Policy }
	noMinter    struct{ broker.Minter }
	noAnnouncer struct{ broker.Announcer }
)

func TestEndKeysAndTheirSecretAreNotPrinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := "a secret of thirty-two bytes, 32"
		h := newHarness(t, newFaulty(t), func(c *broker.Config) { c.EndKeySecret = []byte(secret) })
		begun := h.begin(report, nil)
		key := begun.EndKey
		_, mac, _ := strings.Cut(key.Secret(), ".")
		var log strings.Builder
		slog.New(slog.NewJSONHandler(&log, nil)).Info("a key", "key", key, "begun", begun)
		marshaled, err := json.Marshal(map[string]any{"key": key, "begun": begun})
		if err != nil {
			t.Fatal(err)
		}
		texts := []string{log.String(), string(marshaled), key.String(), fmt.Sprint(h.Config)}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			texts = append(texts, fmt.Sprintf(verb, key), fmt.Sprintf(verb, &key), fmt.Sprintf(verb, begun), fmt.Sprintf(verb, []broker.EndKey{key}))
		}
		for _, text := range texts {
			if strings.Contains(text, mac) || strings.Contains(text, secret) || strings.Contains(text, "115 101 99 114 101 116") {
				t.Errorf("a secret is in %q", text)
			}
		}
	})
}

// FuzzParseEndKey: it reads what Secret writes, exactly, and nothing else.
func FuzzParseEndKey(f *testing.F) {
	good := "end_1792500000000." + strings.Repeat("A", 43)
	for _, text := range []string{
		"", good, good + "A", good[1:], "end_", "end_.", strings.Replace(good, "1792", "01792", 1), strings.Replace(good, "end_", "end_-", 1),
		strings.Replace(good, "end_", "end_+", 1), strings.Replace(good, "1792500000000", "99999999999999999999", 1), good[:len(good)-1] + "B",
		good + "=", good + "\n", strings.ToUpper(good), strings.Repeat(good, 100),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := broker.ParseEndKey(text)
		switch {
		case err == nil && key.Secret() != text:
			t.Errorf("%q is read as %q", text, key.Secret())
		case err != nil && (key != broker.EndKey{} || len(err.Error()) > 200):
			t.Errorf("%q: %v with %q", text, err, key.Secret())
		case err == nil && len(text) > 70:
			t.Errorf("a key of %d bytes", len(text))
		}
	})
}

func TestParseEndKey(t *testing.T) {
	good := "end_1792500000000." + strings.Repeat("A", 43)
	for text, ok := range map[string]bool{
		"": true, good: true, "end_9223372036854775807." + strings.Repeat("A", 43): true,
		"end_0." + strings.Repeat("A", 43): false, good + "A": false, good[:len(good)-1]: false, good[:len(good)-1] + "B": false,
		" " + good: false, good + "\n": false, "tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa": false,
	} {
		if _, err := broker.ParseEndKey(text); ok != (err == nil) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
