package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/errandhq/errand/broker"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

func event(reason string) broker.Event {
	return broker.Event{ID: broker.NewEventID(), Kind: broker.EventTaskEnded, Time: time.Unix(1000, 0), Reason: reason}
}

func lines(t *testing.T, path string) []Line {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []Line
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		var l Line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		out = append(out, l)
	}
	return out
}

func TestRecordIsDurableAndInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Record(ctx, event("first"), event("second")); err != nil {
		t.Fatal(err)
	}
	// Read while it is open: what Record has returned for is in the file, not in a buffer.
	if got := lines(t, path); len(got) != 2 || got[0].Reason != "first" || got[1].Reason != "second" {
		t.Fatalf("got %+v", got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Record(ctx, event("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Record(ctx, event("third")); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, path); len(got) != 3 || got[2].Reason != "third" {
		t.Errorf("after reopening: %+v", got)
	}
}

func TestOpenCutsOffAnUnfinishedLine(t *testing.T) {
	for name, c := range map[string]struct{ before, after string }{
		"empty":             {"", ""},
		"whole":             {"{}\n", "{}\n"},
		"torn":              {"{}\n{\"id\":", "{}\n"},
		"only a torn one":   {"{\"id\":", ""},
		"torn and very big": {"{}\n" + strings.Repeat("x", 200<<10), "{}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			if got, _ := os.ReadFile(path); string(got) != c.after {
				t.Errorf("got %d bytes, want %q", len(got), c.after)
			}
		})
	}
}

func TestOneLineForEachEventWhateverItSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hostile := "a\nb\r\n\x1b[31m\u202e\u200b{\"kind\":\"grant.issued\"}\x00\u2028\x7f\u0085é😀\U000e0041"
	says := broker.Attributes{Ticket: hostile, Ref: broker.TaskRef{Kind: hostile, ID: hostile, URL: hostile}, Labels: map[string]string{hostile: hostile}}
	if err := f.Record(ctx, broker.Event{ID: "evt_1", Kind: broker.EventDenied, Purpose: hostile, TaskName: hostile, Attributes: says}); err != nil {
		t.Fatal(err)
	}
	got := lines(t, path)
	if len(got) != 1 || got[0].Purpose != hostile || got[0].Ticket != hostile || got[0].Ref.URL != hostile || got[0].Labels[hostile] != hostile {
		t.Fatalf("got %+v", got)
	}
	text, _ := os.ReadFile(path)
	if bytes.ContainsFunc(bytes.TrimSuffix(text, []byte("\n")), func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("characters that cannot be seen reached the file: %q", text)
	}
	if !bytes.Contains(text, []byte("é😀\\udb40\\udc41")) {
		t.Errorf("what can be seen is not there as it is: %q", text)
	}
}

// fakeDisk is a disk that fails when told to, and remembers what is on it.
type fakeDisk struct {
	mu    sync.Mutex
	text  []byte
	syncs int
	short bool          // the next write stops half-way
	fail  error         // of Sync
	hang  chan struct{} // Sync waits for it
	waits bool
}

func (d *fakeDisk) hanging() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waits
}

func (d *fakeDisk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.short {
		d.short = false
		d.text = append(d.text, p[:len(p)/2]...)
		return len(p) / 2, errors.New("no space left on device")
	}
	d.text = append(d.text, p...)
	return len(p), nil
}

func (d *fakeDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	if hang := d.hang; hang != nil {
		d.waits = true
		d.mu.Unlock()
		<-hang
		d.mu.Lock()
	}
	return d.fail
}

func (d *fakeDisk) Truncate(n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.text = d.text[:n]
	return nil
}

func (d *fakeDisk) Close() error { return nil }

func TestAFailedWriteIsAnErrorAndLeavesNoTornLine(t *testing.T) {
	d := &fakeDisk{}
	f := newFile(d, 0)
	if err := f.Record(ctx, event("before")); err != nil {
		t.Fatal(err)
	}
	d.short = true
	if err := f.Record(ctx, event("lost")); err == nil {
		t.Fatal("a write that failed was reported as durable")
	}
	d.fail = errors.New("input/output error")
	if err := f.Record(ctx, event("unsynced")); err == nil {
		t.Fatal("a sync that failed was reported as durable")
	}
	d.fail = nil
	if err := f.Record(ctx, event("after")); err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, text := range strings.Split(strings.TrimSpace(string(d.text)), "\n") {
		var l Line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("torn line %q", text)
		}
		reasons = append(reasons, l.Reason)
	}
	if fmt.Sprint(reasons) != "[before after]" {
		t.Errorf("got %v", reasons)
	}
}

func TestConcurrentCallersShareSyncs(t *testing.T) {
	d := &fakeDisk{}
	f := newFile(d, 0)
	const callers = 200
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			if err := f.Record(ctx, event(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := strings.Count(string(d.text), "\n"); n != callers {
		t.Errorf("%d lines of %d", n, callers)
	}
	if d.syncs > callers {
		t.Errorf("%d syncs for %d callers", d.syncs, callers)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPendingIsBounded(t *testing.T) {
	d := &fakeDisk{}
	f := newFile(d, 0)
	if err := f.Record(ctx, event(strings.Repeat("x", MaxPending))); err != nil {
		t.Errorf("a lot at once, with nothing waiting: %v", err)
	}
	d.hang = make(chan struct{})
	first := make(chan error, 1)
	go func() { first <- f.Record(ctx, event("hangs")) }()
	for !d.hanging() {
		runtime.Gosched()
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := f.Record(short, event(strings.Repeat("x", MaxPending/2))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a disk that hangs: %v", err)
	}
	if err := f.Record(ctx, event(strings.Repeat("x", MaxPending/2))); err == nil {
		t.Error("more than MaxPending was accepted")
	}
	close(d.hang)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(string(d.text), "\n"); n != 3 {
		t.Errorf("%d lines", n)
	}
}

// TestOneProcessAtATime: a second one would cut off what the first is writing.
func TestOneProcessAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "another process writes this log") {
		t.Errorf("a second one: %v", err)
	}
	if err := f.Record(ctx, event("kept")); err != nil {
		t.Fatal(err)
	}
	f.Close()
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if got := lines(t, path); len(got) != 1 {
		t.Errorf("got %+v", got)
	}
}
