package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// board is a Board that replicas share, and that can be made to fail.
type board struct {
	mu    sync.Mutex
	notes map[string]broker.BoardNote
	until map[string]time.Time
	fail  error
	posts int
}

func newBoard() *board {
	return &board{notes: map[string]broker.BoardNote{}, until: map[string]time.Time{}}
}

func (b *board) Post(_ context.Context, notes ...broker.BoardNote) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.ContainsFunc(notes, func(n broker.BoardNote) bool { return n.Kind != "verifier" }) {
		b.posts++
	}
	if b.fail != nil {
		return b.fail
	}
	for _, n := range notes {
		if len(n.ID) > 128 || len(n.Text) > broker.MaxNoteBytes {
			return errors.New("a note that is no note")
		}
		b.notes[n.Kind+n.ID], b.until[n.Kind+n.ID] = n, time.Now().Add(n.Life)
	}
	return nil
}

func (b *board) Notes(_ context.Context, kind string) (out []broker.BoardNote, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, n := range b.notes {
		if n.Kind == kind && time.Now().Before(b.until[id]) {
			out = append(out, n)
		}
	}
	return out, b.fail
}

func (b *board) posted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.posts
}

func (b *board) break_(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

// position is how far the feed is here.
func (h *harness) position() broker.Position {
	h.t.Helper()
	synctest.Wait()
	at, _, err := h.Verifiers(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return at
}

// ack has a verifier of an audience say that it is at a position.
func (h *harness) ack(server, audience, id string, p broker.Position) {
	h.t.Helper()
	if err := h.tryAck(server, audience, broker.Ack{ID: id, Position: p, MaxStale: 10 * time.Second}); err != nil {
		h.t.Fatalf("ack of %s: %v", id, err)
	}
}

func (h *harness) tryAck(server, audience string, a broker.Ack) error {
	return h.Acknowledge(context.Background(), workload(server), audience, a)
}

// waited is what an End with Wait comes to, and after how long.
type waited struct {
	receipt broker.Receipt
	took    time.Duration
}

func (h *harness) endWaiting(id broker.TaskID, wait time.Duration) <-chan waited {
	out := make(chan waited, 1)
	go func() {
		began := time.Now()
		receipt, err := h.End(context.Background(), workload(report), id, broker.EndRequest{State: broker.Completed, Wait: wait})
		if err != nil {
			h.t.Errorf("end: %v", err)
		}
		out <- waited{receipt, time.Since(began)}
	}()
	return out
}

func (w waited) check(t *testing.T, confirmed int, pending ...string) {
	t.Helper()
	if w.receipt.Propagation == nil {
		t.Fatal("nothing is said of verifiers")
	}
	var ids []string
	for _, p := range w.receipt.Propagation.Pending {
		ids = append(ids, p.ID)
	}
	if w.receipt.Propagation.Confirmed != confirmed || !slices.Equal(ids, pending) {
		t.Errorf("%d confirmed and %v pending after %s; want %d and %v", w.receipt.Propagation.Confirmed, ids, w.took, confirmed, pending)
	}
}

// TestAwaitIsOverWithTheLastAcknowledgement: of all verifiers of the task's audience, and of no other.
func TestAwaitIsOverWithTheLastAcknowledgement(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.position()
		for _, id := range []string{"a", "b"} {
			h.ack("orders", "orders", id, before)
		}
		begun := h.begin(report, withToken)
		done := h.endWaiting(begun.Task.ID, 5*time.Second)
		after := h.position()
		h.ack("orders", "orders", "a", after)
		time.Sleep(300 * time.Millisecond)
		select {
		case <-done:
			t.Error("it was over with the first of two")
		default:
		}
		h.ack("orders", "orders", "b", after)
		out := <-done
		out.check(t, 2)
		if out.took < 300*time.Millisecond || out.took > 400*time.Millisecond {
			t.Errorf("it took %s", out.took)
		}
		// A repeat, now that all have it, is answered at once.
		out = <-h.endWaiting(begun.Task.ID, 5*time.Second)
		out.check(t, 2)
		if out.took > 50*time.Millisecond || out.receipt.First {
			t.Errorf("the repeat took %s: %+v", out.took, out.receipt)
		}
		// What happens in other shards is nobody's business here.
		other := h.begin(report, withToken).Task.ID
		done = h.endWaiting(other, 5*time.Second)
		enough := h.position().Of(other.Shard())
		h.ack("orders", "orders", "a", enough)
		h.ack("orders", "orders", "b", enough)
		(<-done).check(t, 2)
	})
}

// TestP2AwaitSaysByWhenTheOthersRefuse: as of the call, whenever they were heard last, and it waits no longer than that.
func TestP2AwaitSaysByWhenTheOthersRefuse(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.position()
		for id, stale := range map[string]time.Duration{"two": 2 * time.Second, "ten": 10 * time.Second, "accepts": 0} {
			if err := h.tryAck("orders", "orders", broker.Ack{ID: id, Position: before, MaxStale: stale}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Second) // it was heard long ago, and may have proved itself fresh just now
		id := h.begin(report, withToken).Task.ID
		asked := time.Now()
		out := <-h.endWaiting(id, time.Second)
		out.check(t, 0, "accepts", "ten", "two")
		for i, want := range []time.Duration{broker.MaxTokenLife + broker.Margin, 11 * time.Second, 3 * time.Second} {
			if got := out.receipt.Propagation.Pending[i].RefusesAt.Sub(asked); got < want || got > want+100*time.Millisecond {
				t.Errorf("%s refuses after %s, want %s", out.receipt.Propagation.Pending[i].ID, got, want)
			}
		}
		if out.took < time.Second || out.took > 1100*time.Millisecond {
			t.Errorf("it took %s", out.took)
		}
		// Without the one that accepts, there is nothing to wait for when the last one refuses by itself.
		if err := h.tryAck("orders", "orders", broker.Ack{ID: "accepts", Closed: true}); err != nil {
			t.Fatal(err)
		}
		out = <-h.endWaiting(id, broker.MaxWait)
		out.check(t, 0, "ten", "two")
		if out.took < 11*time.Second || out.took > 12*time.Second {
			t.Errorf("it took %s", out.took)
		}
	})
}

// TestAwaitNamesSoManyAtMost, and counts the others.
func TestAwaitNamesSoManyAtMost(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.position()
		for n := range broker.MaxPendingVerifiers + 5 {
			h.ack("orders", "orders", fmt.Sprintf("v%03d", n), before)
		}
		id := h.begin(report, withToken).Task.ID
		out := <-h.endWaiting(id, time.Second)
		if p := out.receipt.Propagation; p == nil || len(p.Pending) != broker.MaxPendingVerifiers || p.Others != 5 || p.Pending[0].ID != "v000" {
			t.Errorf("got %+v", p)
		}
	})
}

// TestAVerifierThatJoins after the end counts as the others: it may have begun with something older.
func TestAVerifierThatJoins(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.position()
		h.ack("orders", "orders", "old", before)
		done := h.endWaiting(h.begin(report, withToken).Task.ID, 5*time.Second)
		after := h.position()
		h.ack("orders", "orders", "new", before)
		h.ack("orders", "orders", "old", after)
		time.Sleep(time.Second)
		h.ack("orders", "orders", "newer", after)
		h.ack("orders", "orders", "new", after)
		out := <-done
		out.check(t, 3)
		if out.took < time.Second {
			t.Errorf("it did not wait for the one that joined: %s", out.took)
		}
	})
}

// TestAcknowledgementsAreOfTheirSenderAlone: nobody confirms for an instance of another SPIFFE ID, and what was
// confirmed is not taken back.
func TestAcknowledgementsAreOfTheirSenderAlone(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.position()
		h.ack("orders", "orders", "a", before)
		id := h.begin(report, withToken).Task.ID
		h.end(report, id)
		after := h.position()
		h.ack("rogue", "orders", "a", after)
		if err := h.tryAck("rogue", "orders", broker.Ack{ID: "a", Closed: true}); err != nil {
			t.Fatal(err)
		}
		(<-h.endWaiting(id, time.Second)).check(t, 0, "a")
		h.ack("orders", "orders", "a", after)
		h.ack("orders", "orders", "a", before) // one that was late
		(<-h.endWaiting(id, time.Second)).check(t, 1)
	})
}

// TestPositionsAreChecked: of another data set, of other shards, and ahead of all that is known.
func TestPositionsAreChecked(t *testing.T) {
	inBubble(t, func(h *harness) {
		at := h.position()
		try := func(p broker.Position) error {
			return h.tryAck("orders", "orders", broker.Ack{ID: "a", Position: p})
		}
		ahead, absurd := at.Clone(), at.Clone()
		ahead.Numbers[0]++
		absurd.Numbers[0] = 1<<64 - 1
		want(t, try(broker.Position{}), broker.ErrEpoch)
		want(t, try(broker.Position{Epoch: at.Epoch + 1, Numbers: at.Numbers}), broker.ErrEpoch)
		want(t, try(broker.Position{Epoch: at.Epoch - 1, Numbers: at.Numbers}), broker.ErrEpoch)
		want(t, try(broker.Position{Epoch: at.Epoch, Numbers: append(at.Clone().Numbers, 0)}), broker.ErrEpoch)
		want(t, try(absurd), broker.ErrNotReady)
		want(t, try(ahead), broker.ErrNotReady)
		if _, all, _ := h.Verifiers(context.Background()); len(all) != 0 {
			t.Errorf("they are remembered: %+v", all)
		}
		// What another replica has just told a verifier is here in a moment.
		id := h.begin(report, withToken).Task.ID
		soon := at.Clone()
		soon.Numbers[id.Shard()]++
		done := make(chan error, 1)
		go func() { done <- try(soon) }()
		time.Sleep(50 * time.Millisecond)
		h.end(report, id)
		if err := <-done; err != nil {
			t.Errorf("one that was ahead for a moment: %v", err)
		}
	})
}

// TestSilentVerifiersAreForgotten after a minute, and closed ones at once.
func TestSilentVerifiersAreForgotten(t *testing.T) {
	inBubble(t, func(h *harness) {
		at := h.position()
		h.ack("orders", "orders", "a", at)
		h.ack("orders", "orders", "b", at)
		known := func() (ids []string) {
			_, all, err := h.Verifiers(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range all {
				ids = append(ids, v.ID)
			}
			return ids
		}
		time.Sleep(broker.VerifierSilence - time.Second)
		h.ack("orders", "orders", "b", at)
		if got := known(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("got %v", got)
		}
		time.Sleep(2 * time.Second)
		if got := known(); !slices.Equal(got, []string{"b"}) || h.KnownVerifiers() != 1 {
			t.Errorf("got %v", got)
		}
		if err := h.tryAck("orders", "orders", broker.Ack{ID: "b", Closed: true}); err != nil || h.KnownVerifiers() != 0 {
			t.Errorf("%v, %d", err, h.KnownVerifiers())
		}
	})
}

// TestVerifiersAreBounded: of one server, and in all.
func TestVerifiersAreBounded(t *testing.T) {
	inBubble(t, func(h *harness) {
		at := h.position()
		try := func(server, id string) error {
			return h.tryAck(server, "orders", broker.Ack{ID: id, Position: at, MaxStale: time.Second})
		}
		for n := range broker.MaxVerifiers {
			if err := try(fmt.Sprintf("s%d", n/broker.MaxVerifiersPerServer), fmt.Sprintf("v%d", n)); err != nil {
				t.Fatalf("the %dth: %v", n+1, err)
			}
		}
		err := try("s0", "more")
		want(t, err, broker.ErrQuota)
		if err == nil || !strings.Contains(err.Error(), "256 verifiers of one SPIFFE ID") {
			t.Errorf("got %v", err)
		}
		want(t, try("other", "more"), broker.ErrCrowded)
		if err := try("s0", "v0"); err != nil {
			t.Errorf("one that is known: %v", err)
		}
		if h.KnownVerifiers() != broker.MaxVerifiers {
			t.Errorf("%d are known", h.KnownVerifiers())
		}
		time.Sleep(broker.VerifierSilence)
		for _, server := range []string{"s0", "other"} {
			if err := try(server, "more"); err != nil {
				t.Errorf("with room again: %v", err)
			}
		}
	})
}

// TestAckFields at their limits, and one past them.
func TestAckFields(t *testing.T) {
	inBubble(t, func(h *harness) {
		at := h.position()
		for name, c := range map[string]struct {
			edit  func(*broker.Ack)
			field string
		}{
			"good":           {func(*broker.Ack) {}, ""},
			"longest":        {func(a *broker.Ack) { a.ID = strings.Repeat("a", broker.MaxAckID) }, ""},
			"longest name":   {func(a *broker.Ack) { a.Version = strings.Repeat("v", broker.MaxAckVersion) }, ""},
			"slowest":        {func(a *broker.Ack) { a.MaxStale = broker.MaxAckStale }, ""},
			"no ID":          {func(a *broker.Ack) { a.ID = "" }, "id"},
			"a long ID":      {func(a *broker.Ack) { a.ID = strings.Repeat("a", broker.MaxAckID+1) }, "id"},
			"a control":      {func(a *broker.Ack) { a.ID = "a\x1b[2J" }, "id"},
			"a line":         {func(a *broker.Ack) { a.ID = "a\nb" }, "id"},
			"a long version": {func(a *broker.Ack) { a.Version = strings.Repeat("v", broker.MaxAckVersion+1) }, "version"},
			"a red version":  {func(a *broker.Ack) { a.Version = "v1\x1b[31m" }, "version"},
			"too slow":       {func(a *broker.Ack) { a.MaxStale = broker.MaxAckStale + time.Second }, "max_stale"},
			"negative":       {func(a *broker.Ack) { a.MaxStale = -time.Second }, "max_stale"},
			"bad, and bye":   {func(a *broker.Ack) { a.ID, a.Closed = "", true }, "id"},
		} {
			a := broker.Ack{ID: "a", Position: at, MaxStale: time.Second}
			c.edit(&a)
			err := h.tryAck("orders", "orders", a)
			var bad *broker.Invalid
			if errors.As(err, &bad) != (c.field != "") || bad != nil && bad.Field != c.field {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestReplicasShareVerifiers: one that the second replica hears confirms an end that was made at the first, whichever
// it has spoken to before.
func TestReplicasShareVerifiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		common := newBoard()
		share := func(c *broker.Config) { c.Board = common }
		one, two := newHarness(t, store, share), newHarness(t, store, share)
		before := one.position()
		two.ack("orders", "orders", "a", before)
		one.ack("orders", "orders", "moves", before)
		time.Sleep(200 * time.Millisecond)
		id := one.begin(report, withToken).Task.ID
		(<-one.endWaiting(id, time.Second)).check(t, 0, "a", "moves")
		done := one.endWaiting(id, 5*time.Second)
		after := two.position()
		two.ack("orders", "orders", "a", after)
		two.ack("orders", "orders", "moves", after)
		out := <-done
		out.check(t, 2)
		if out.took > 500*time.Millisecond {
			t.Errorf("it took %s", out.took)
		}
		// A good-bye is heard everywhere, and nobody who is silent stays.
		if err := two.tryAck("orders", "orders", broker.Ack{ID: "moves", Closed: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		(<-one.endWaiting(id, time.Second)).check(t, 1)
		time.Sleep(broker.VerifierSilence)
		(<-one.endWaiting(id, time.Second)).check(t, 0)
		// Changes go together.
		posts := common.posted()
		for n := range 200 {
			two.ack("orders", "orders", fmt.Sprintf("v%d", n), after)
		}
		time.Sleep(time.Second)
		if n := common.posted() - posts; n != 1 {
			t.Errorf("%d posts for 200 changes at once", n)
		}
	})
}

// TestGoodByesPushNobodyOut: a server that says good-bye for instances without number takes no other audience's
// verifiers off the Board, where the other replicas find whom an end has to wait for.
func TestGoodByesPushNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		share := func(c *broker.Config) { c.Board = store }
		one, two := newHarness(t, store, share), newHarness(t, store, share)
		before := one.position()
		two.ack("orders", "orders", "a", before)
		time.Sleep(time.Second)
		bye := func(n int) {
			t.Helper()
			if err := two.tryAck("rogue", "files", broker.Ack{ID: fmt.Sprintf("v%d", n), Closed: true}); err != nil {
				t.Fatal(err)
			}
		}
		posted := func() int {
			t.Helper()
			time.Sleep(time.Second)
			notes, err := store.Notes(context.Background(), "verifier")
			if err != nil {
				t.Fatal(err)
			}
			return len(notes)
		}
		for n := range broker.MaxNotes + 1 {
			if bye(n); n%1000 == 0 {
				time.Sleep(200 * time.Millisecond) // the Board is told
			}
		}
		if n := posted(); n > 1+broker.MaxVerifiersPerServer {
			t.Errorf("%d notes of one server that has left, and of another one", n)
		}
		id := one.begin(report, withToken).Task.ID
		(<-one.endWaiting(id, time.Second)).check(t, 0, "a")
		// It has room again when those are forgotten; one that is known by then still goes at once.
		time.Sleep(broker.VerifierSilence)
		two.ack("rogue", "files", "last", before)
		bye(0)
		if err := two.tryAck("rogue", "files", broker.Ack{ID: "last", Closed: true}); err != nil || two.KnownVerifiers() != 0 {
			t.Errorf("%v, and %d are known", err, two.KnownVerifiers())
		}
		if n := posted(); n != 2 {
			t.Errorf("%d notes", n)
		}
	})
}

// TestAClockThatIsAheadKeepsNobody: a verifier that was heard by a replica of another time is forgotten like others.
func TestAClockThatIsAheadKeepsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		common := newBoard()
		h := newHarness(t, store, func(c *broker.Config) { c.Board = common })
		note := fmt.Sprintf(`{"i":"ahead","w":"spiffe://prod/orders","a":"orders","t":%q}`, time.Now().Add(time.Hour).Format(time.RFC3339))
		if err := common.Post(ctx, broker.BoardNote{Kind: "verifier", ID: "n", Text: []byte(note), Life: broker.VerifierSilence}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{1, 0} {
			if _, all, err := h.Verifiers(ctx); err != nil || len(all) != want {
				t.Errorf("%d are known instead of %d: %v", len(all), want, err)
			}
			time.Sleep(2 * broker.VerifierSilence)
		}
	})
}

// TestABoardThatIsAway costs confirmations, and no end; and what makes no sense on it is left out.
func TestABoardThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		common := newBoard()
		var log safeLog
		h := newHarness(t, store, func(c *broker.Config) { c.Board, c.Logger = common, slog.New(slog.NewTextHandler(&log, nil)) })
		before := h.position()
		for i, text := range []string{
			"", "{}", "not JSON", `{"i":"a\u001b","w":"spiffe://prod/orders"}`, `{"i":"a","w":"http://prod/orders"}`, `{"i":"a","w":"spiffe://prod/orders","s":-1}`,
		} {
			_ = common.Post(t.Context(), broker.BoardNote{Kind: "verifier", ID: fmt.Sprint(i), Text: []byte(text), Life: time.Hour})
		}
		if _, all, err := h.Verifiers(context.Background()); err != nil || len(all) != 0 {
			t.Errorf("%v, %+v", err, all)
		}
		common.break_(broker.ErrUnavailable)
		h.ack("orders", "orders", "a", before)
		id := h.begin(report, withToken).Task.ID
		out := <-h.endWaiting(id, 3*time.Second)
		if out.receipt.State != broker.Completed || !out.receipt.Durable || out.receipt.Propagation != nil {
			t.Errorf("got %+v", out.receipt)
		}
		_, _, err = h.Verifiers(context.Background())
		want(t, err, broker.ErrUnavailable)
		time.Sleep(5 * time.Second)
		if n := strings.Count(log.String(), "cannot tell each other about verifiers"); n != 1 {
			t.Errorf("the log has it %d times:\n%s", n, log.String())
		}
		common.break_(nil)
		time.Sleep(time.Second)
		other := newHarness(t, store, func(c *broker.Config) { c.Board = common })
		if _, all, err := other.Verifiers(context.Background()); err != nil || len(all) != 1 {
			t.Errorf("what was heard while it was away is not told afterwards: %v, %+v", err, all)
		}
		(<-h.endWaiting(id, time.Second)).check(t, 0, "a")
		h.ack("orders", "orders", "a", h.position())
		(<-h.endWaiting(id, time.Second)).check(t, 1)
	})
}

// safeLog is a log that may be read meanwhile.
type safeLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestWaitersAreBounded: of one workload, and in all. One more is not waited for, and its end stands.
func TestWaitersAreBounded(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.position()
		h.ack("orders", "orders", "a", before)
		id := h.begin(report, withToken).Task.ID
		h.end(report, id)
		after := h.position()
		done := make([]<-chan waited, broker.MaxWaitersPerCaller)
		for i := range done {
			done[i] = h.endWaiting(id, 5*time.Second)
		}
		synctest.Wait()
		out := <-h.endWaiting(id, 5*time.Second)
		if out.took > 0 || out.receipt.State != broker.Completed || out.receipt.Propagation != nil {
			t.Errorf("one too many: %+v after %s", out.receipt, out.took)
		}
		var others sync.WaitGroup
		for range broker.MaxWaiters - broker.MaxWaitersPerCaller {
			others.Go(func() { _, _ = h.Await(context.Background(), "", after, nil, 5*time.Second) })
		}
		synctest.Wait()
		_, err := h.Await(context.Background(), "", after, nil, 5*time.Second)
		want(t, err, broker.ErrCrowded)
		h.ack("orders", "orders", "a", after)
		for _, d := range done {
			(<-d).check(t, 1)
		}
		others.Wait()
		if p, err := h.Await(context.Background(), "", after, nil, 5*time.Second); err != nil || p.Confirmed != 1 {
			t.Errorf("with room again: %+v, %v", p, err)
		}
	})
}

// TestAwaitEnds with its caller, with the replica, and with a mistake at once.
func TestAwaitEnds(t *testing.T) {
	inBubble(t, func(h *harness) {
		before := h.position()
		h.ack("orders", "orders", "a", before)
		id := h.begin(report, withToken).Task.ID
		_, err := h.End(context.Background(), workload(report), id, broker.EndRequest{State: broker.Completed, Wait: broker.MaxWait + time.Second})
		want(t, err, broker.ErrInvalid)
		_, err = h.Await(context.Background(), "", before, nil, -time.Second)
		want(t, err, broker.ErrInvalid)
		h.end(report, id)
		after := h.position()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = h.Await(ctx, "", after, nil, broker.MaxWait)
		want(t, err, context.DeadlineExceeded)
		if p, err := h.Await(context.Background(), "", after, []string{"files"}, broker.MaxWait); err != nil || p.Confirmed != 0 || len(p.Pending) != 0 {
			t.Errorf("of another audience: %+v, %v", p, err)
		}
		done := h.endWaiting(id, broker.MaxWait)
		time.Sleep(time.Second)
		h.Dismiss()
		out := <-done
		out.check(t, 0, "a")
		if out.took > 1100*time.Millisecond {
			t.Errorf("it held the replica up for %s", out.took)
		}
	})
}
