package verify

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/errandhq/errand/sdk/wire"
)

func testView(edit func(*Config)) *view {
	c := Config{Audience: "orders", MaxStale: DefaultMaxStale, Leeway: DefaultLeeway, MaxEntries: DefaultMaxEntries}
	if edit != nil {
		edit(&c)
	}
	return newView(c)
}

// model is the view written down plainly: every entry that was ever said, and what was proven.
type model struct {
	now      time.Time
	position wire.Position
	entries  []wire.FeedEntry
	proofs   []proof
	fresh    time.Time
}

func (m *model) settle() {
	for _, p := range m.proofs {
		if m.position.Covers(p.position) && p.asOf.After(m.fresh) {
			m.fresh = p.asOf
		}
	}
}

func (m *model) enter(epoch uint64) {
	m.position = wire.Position{Epoch: epoch}
	m.proofs, m.fresh = nil, time.Time{}
	m.entries = slices.DeleteFunc(m.entries, func(e wire.FeedEntry) bool { return e.Kind != wire.KindKey })
}

// denies reports whether an entry means the grant, by the words of wire.FeedEntry.
func (m *model) denies(e wire.FeedEntry, g *Grant) bool {
	switch e.Kind {
	case wire.KindGrant:
		return e.ID == g.ID
	case wire.KindTask:
		return slices.Contains(g.Task.Path, e.ID)
	case wire.KindKey:
		return e.ID == g.key
	case wire.KindSelector:
		prefix, below := strings.CutSuffix(e.Subject, "*")
		subject := e.Subject == "" || e.Subject == g.Workload || below && strings.HasPrefix(g.Workload, prefix)
		return e.Shard == g.shard && e.Number > g.number && subject && (e.Audience == "" || e.Audience == "orders") && (e.Scope == "" || g.Has(e.Scope))
	}
	return e.Shard == g.shard && e.Number > g.number
}

// judge returns what the view must say. either is true where an entry has just come of age: the
// view may have it still.
func (m *model) judge(g *Grant) (want error, either bool) {
	switch {
	case m.fresh.IsZero() || m.now.Sub(m.fresh) > DefaultMaxStale:
		return ErrStale, false
	case g.epoch < m.position.Epoch:
		return ErrRevoked, false
	case g.epoch > m.position.Epoch || g.shard >= len(m.position.Numbers):
		return ErrStale, false
	}
	for _, e := range m.entries {
		if !m.denies(e, g) {
			continue
		}
		if m.now.Before(e.Until) {
			return ErrRevoked, false
		}
		either = true
	}
	return nil, either
}

func drawGrant(t *rapid.T, epoch uint64) *Grant {
	shard := rapid.IntRange(0, 2).Draw(t, "shard")
	root, child := fmt.Sprintf("tsk_%02d%d", shard, rapid.IntRange(0, 2).Draw(t, "root")), fmt.Sprintf("tsk_%02d%d", shard, rapid.IntRange(3, 5).Draw(t, "child"))
	return &Grant{
		ID: fmt.Sprintf("gnt_%02d%d", shard, rapid.IntRange(0, 3).Draw(t, "grant")), Task: Task{ID: child, Path: []string{root, child}},
		Workload: drawSubject(t), Scopes: []string{rapid.SampledFrom([]string{"r", "w"}).Draw(t, "scope")},
		Expires: time.Unix(1<<40, 0), key: rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "key"),
		shard: shard, epoch: epoch + uint64(rapid.IntRange(0, 2).Draw(t, "epoch")) - 1, number: rapid.Uint64Range(0, 6).Draw(t, "number"),
	}
}

func drawSubject(t *rapid.T) string {
	return rapid.SampledFrom([]string{"spiffe://td/a", "spiffe://td/a/b", "spiffe://td/ab", "spiffe://te/a"}).Draw(t, "subject")
}

func drawEntry(t *rapid.T, shards int, number uint64, now time.Time) wire.FeedEntry {
	e := wire.FeedEntry{
		Shard: rapid.IntRange(0, shards-1).Draw(t, "entry shard"), Number: number,
		Kind:  rapid.SampledFrom([]string{wire.KindGrant, wire.KindTask, wire.KindKey, wire.KindAll, wire.KindSelector, "later"}).Draw(t, "kind"),
		Until: now.Add(time.Duration(rapid.IntRange(-5, 60).Draw(t, "until")) * time.Second),
	}
	switch e.Kind {
	case wire.KindGrant:
		e.ID = fmt.Sprintf("gnt_%02d%d", e.Shard, rapid.IntRange(0, 3).Draw(t, "grant"))
	case wire.KindTask:
		e.ID = fmt.Sprintf("tsk_%02d%d", e.Shard, rapid.IntRange(0, 5).Draw(t, "task"))
	case wire.KindKey:
		// A key is rarely denied, and then for longer than the entry says.
		e.ID = rapid.SampledFrom([]string{"k1", "k8", "k9"}).Draw(t, "kid")
		e.Until = now.Add(keyDenialLife)
	case wire.KindSelector:
		e.Subject = rapid.SampledFrom([]string{"", "spiffe://td/a", "spiffe://td/a/*", "spiffe://td/*"}).Draw(t, "subjects")
		e.Scope = rapid.SampledFrom([]string{"", "r"}).Draw(t, "scope")
		e.Audience = rapid.SampledFrom([]string{"", "orders", "other"}).Draw(t, "audience")
	}
	return e
}

// TestViewAgainstModel drives the view and a plain list of everything that was ever said.
func TestViewAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, m := testView(nil), &model{now: time.Unix(1_700_000_000, 0)}
		number := uint64(0)
		move := func() wire.Position {
			p := wire.Position{Epoch: m.position.Epoch, Numbers: slices.Clone(m.position.Numbers)}
			for i := range p.Numbers {
				p.Numbers[i] += rapid.Uint64Range(0, 2).Draw(t, "step")
			}
			return p
		}
		draw := func(shards int) []wire.FeedEntry {
			var entries []wire.FeedEntry
			for range rapid.IntRange(0, 2).Draw(t, "entries") {
				number++
				entries = append(entries, drawEntry(t, shards, 1+number%6, m.now))
			}
			return entries
		}
		take := func(p wire.Position, entries []wire.FeedEntry) {
			m.position, m.entries = p, append(m.entries, entries...)
			m.settle()
		}
		t.Repeat(map[string]func(*rapid.T){
			"snapshot": func(t *rapid.T) {
				p := wire.Position{Epoch: max(1, m.position.Epoch), Numbers: []uint64{0, 0}}
				if m.position.Numbers != nil {
					p = move()
				}
				if rapid.IntRange(0, 9).Draw(t, "new epoch") == 0 {
					p.Epoch++
				}
				entries := draw(2)
				if err := v.snapshot(p, entries, m.now); err != nil {
					t.Fatal(err)
				}
				if p.Epoch > m.position.Epoch {
					m.enter(p.Epoch)
				}
				take(p, entries)
			},
			"event": func(t *rapid.T) {
				if m.position.Numbers == nil {
					t.Skip("there is no stream before a snapshot")
				}
				p, entries := move(), draw(2)
				if err := v.event(p, entries, m.now); err != nil {
					t.Fatal(err)
				}
				take(p, entries)
			},
			"event from the past": func(t *rapid.T) {
				if m.position.Numbers == nil {
					t.Skip("nothing is known")
				}
				p := move()
				p.Epoch--
				if err := v.event(p, draw(2), m.now); !errors.Is(err, errBackwards) {
					t.Fatal(err)
				}
			},
			"event of a new epoch": func(t *rapid.T) {
				if m.position.Numbers == nil || rapid.IntRange(0, 9).Draw(t, "really") > 0 {
					t.Skip("rare")
				}
				p := move()
				p.Epoch++
				if err := v.event(p, nil, m.now); !errors.Is(err, errResync) {
					t.Fatal(err)
				}
				m.enter(p.Epoch)
			},
			"early": func(t *rapid.T) {
				if m.position.Numbers == nil {
					t.Skip("there is no stream before a snapshot")
				}
				entries := draw(2)
				if err := v.early(entries, m.now); err != nil {
					t.Fatal(err)
				}
				m.entries = append(m.entries, entries...)
			},
			"proof": func(t *rapid.T) {
				if m.position.Numbers == nil {
					t.Skip("nothing is known")
				}
				p := proof{asOf: m.now.Add(-time.Duration(rapid.IntRange(0, 12).Draw(t, "age")) * time.Second), position: move()}
				if err := v.prove(p); err != nil {
					t.Fatal(err)
				}
				m.proofs = append(m.proofs, p)
				if len(m.proofs) > maxProofs {
					// The oldest that still waits goes.
					m.proofs = slices.DeleteFunc(m.proofs, func(p proof) bool { return m.position.Covers(p.position) && !p.asOf.After(m.fresh) })
					m.proofs = m.proofs[max(0, len(m.proofs)-maxProofs):]
				}
				m.settle()
			},
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
				v.sweep(m.now)
			},
			"": func(t *rapid.T) {
				g := drawGrant(t, m.position.Epoch)
				_, got := v.judge(g, m.now)
				want, either := m.judge(g)
				if got != want && (!either || got != ErrRevoked) {
					t.Fatalf("at %s, of %+v: got %v, want %v", m.position, g, got, want)
				}
				if p, _ := v.at(); p.String() != m.position.String() {
					t.Fatalf("the position is %s, want %s", p, m.position)
				}
			},
		})
	})
}

// TestEntriesGoAtUntilAndNotBefore is at the second.
func TestEntriesGoAtUntilAndNotBefore(t *testing.T) {
	v := testView(nil)
	start := time.Unix(1_700_000_000, 0)
	entries := []wire.FeedEntry{
		{Kind: wire.KindTask, ID: "tsk_00a", Until: start.Add(30 * time.Second)},
		{Kind: wire.KindSelector, Subject: "spiffe://td/a", Number: 1, Until: start.Add(30*time.Second + time.Nanosecond)},
		{Kind: wire.KindKey, ID: "k", Until: start},
		{Kind: wire.KindTask, ID: "tsk_00past", Until: start.Add(-time.Minute)},
	}
	if err := v.snapshot(wire.Position{Epoch: 1, Numbers: []uint64{1}}, entries, start); err != nil {
		t.Fatal(err)
	}
	// The same task again, for longer, and for less long.
	for _, until := range []int{50, 40} {
		again := []wire.FeedEntry{{Kind: wire.KindTask, ID: "tsk_00a", Until: start.Add(time.Duration(until) * time.Second)}}
		if err := v.early(again, start); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 3}, {29 * time.Second, 3}, {30 * time.Second, 3}, {45 * time.Second, 2}, {50 * time.Second, 2}, {65 * time.Second, 1}, {keyDenialLife - time.Second, 1}, {keyDenialLife + sweepSeconds*time.Second, 0}} {
		v.sweep(start.Add(step.after))
		if got := v.entries(); got != step.want {
			t.Errorf("after %s: %d entries, want %d", step.after, got, step.want)
		}
	}
	if len(v.due) != 0 {
		t.Errorf("%d sweeps are left over", len(v.due))
	}
}

// TestProofsWaitForTheStream keeps an old view stale, however often it is told to be fresh.
func TestProofsWaitForTheStream(t *testing.T) {
	v := testView(nil)
	now := time.Now()
	at := func(n uint64) wire.Position { return wire.Position{Epoch: 1, Numbers: []uint64{n}} }
	if err := v.snapshot(at(1), nil, now); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if err := v.prove(proof{asOf: now.Add(time.Duration(i) * time.Second), position: at(2 + uint64(i))}); err != nil {
			t.Fatal(err)
		}
	}
	if ok, _ := v.freshness(now); ok {
		t.Fatal("fresh by proofs that it has not caught up with")
	}
	if err := v.event(at(8), nil, now); err != nil {
		t.Fatal(err)
	}
	// The oldest of the four that are kept is of position 8, and second 6.
	if !v.freshAsOf.Equal(now.Add(6 * time.Second)) {
		t.Errorf("fresh as of %s", v.freshAsOf.Sub(now))
	}
}

// TestStaleAtTheLimit is fresh at MaxStale, and not after.
func TestStaleAtTheLimit(t *testing.T) {
	v := testView(nil)
	now := time.Now()
	p := wire.Position{Epoch: 1, Numbers: []uint64{0}}
	if err := errors.Join(v.snapshot(p, nil, now), v.prove(proof{asOf: now, position: p})); err != nil {
		t.Fatal(err)
	}
	if ok, _ := v.freshness(now.Add(DefaultMaxStale)); !ok {
		t.Error("stale at MaxStale")
	}
	if ok, _ := v.freshness(now.Add(DefaultMaxStale + 1)); ok {
		t.Error("fresh after MaxStale")
	}
	if ok, _ := v.freshness(now.Round(0).Add(DefaultMaxStale + time.Second)); ok {
		t.Error("fresh by a clock that is not monotonic")
	}
}

// TestFullIsStaleAtOnce, keeps what it has, and ends with a snapshot that fits.
func TestFullIsStaleAtOnce(t *testing.T) {
	v := testView(func(c *Config) { c.MaxEntries = 2 })
	now := time.Now()
	p := wire.Position{Epoch: 1, Numbers: []uint64{9}}
	entry := func(kind, id string) wire.FeedEntry {
		return wire.FeedEntry{Kind: kind, ID: id, Number: 1, Until: now.Add(time.Minute)}
	}
	g := &Grant{ID: "gnt_00a", Workload: "spiffe://td/a", Expires: now.Add(time.Minute), epoch: 1, number: 5}
	if err := errors.Join(v.snapshot(p, []wire.FeedEntry{entry(wire.KindTask, "tsk_00a"), entry(wire.KindKey, "k")}, now), v.prove(proof{asOf: now, position: p})); err != nil {
		t.Fatal(err)
	}
	// What is known already takes no room.
	if err := v.event(p, []wire.FeedEntry{entry(wire.KindTask, "tsk_00a"), entry(wire.KindKey, "k")}, now); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{wire.KindTask, wire.KindKey, wire.KindAll, wire.KindSelector} {
		if _, err := v.judge(g, now); err != nil {
			t.Fatalf("before: %v", err)
		}
		if err := v.event(p, []wire.FeedEntry{entry(kind, "x")}, now); !errors.Is(err, errResync) {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := v.judge(g, now); err != ErrStale || v.entries() != 2 {
			t.Errorf("%s: %v with %d entries", kind, err, v.entries())
		}
		if _, ok := v.at(); ok {
			t.Errorf("%s: no snapshot is asked for", kind)
		}
		if err := v.snapshot(p, nil, now); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSelectorsAreUnited keeps the higher number and the later end of the same selection.
func TestSelectorsAreUnited(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	p := wire.Position{Epoch: 1, Numbers: []uint64{9}}
	entry := func(number uint64, life time.Duration) wire.FeedEntry {
		return wire.FeedEntry{Kind: wire.KindSelector, Subject: "spiffe://td/*", Number: number, Until: now.Add(life)}
	}
	g := &Grant{Workload: "spiffe://td/a", Expires: now.Add(time.Hour), epoch: 1, number: 5}
	for _, entries := range [][]wire.FeedEntry{
		{entry(6, 60*time.Second), entry(3, 20*time.Second)},
		{entry(3, 20*time.Second), entry(6, 60*time.Second)},
		{entry(3, 60*time.Second), entry(6, 20*time.Second)},
		{entry(6, 20*time.Second), entry(3, 60*time.Second)},
	} {
		v := testView(nil)
		if err := v.snapshot(p, entries, now); err != nil {
			t.Fatal(err)
		}
		v.sweep(now.Add(50 * time.Second))
		if !v.dead(g) || v.entries() != 1 {
			t.Errorf("%v: %d entries, dead is %v", entries, v.entries(), v.dead(g))
		}
	}
}

// fullView is a fresh view with so many denials, of tasks, grants and selectors, and a
// grant that is alive.
func fullView(tb testing.TB, now time.Time, size int) (*view, *Grant) {
	tb.Helper()
	v := testView(nil)
	until := now.Add(time.Hour)
	entries := make([]wire.FeedEntry, size)
	for i := range entries {
		e := wire.FeedEntry{Kind: wire.KindTask, ID: "tsk_00" + strconv.Itoa(i), Until: until, Number: uint64(i) + 1}
		switch {
		case i%2 == 0:
			e.Kind, e.ID = wire.KindGrant, "gnt_00"+strconv.Itoa(i)
		case i%1000 == 1:
			e.Kind, e.ID, e.Subject = wire.KindSelector, "", fmt.Sprintf("spiffe://td/agents/%d/*", i)
		}
		entries[i] = e
	}
	p := wire.Position{Epoch: 1, Numbers: []uint64{uint64(size)}}
	if err := errors.Join(v.snapshot(p, entries, now), v.prove(proof{asOf: now, position: p})); err != nil {
		tb.Fatal(err)
	}
	if got := v.entries(); got != size {
		tb.Fatalf("%d entries", got)
	}
	return v, &Grant{
		ID: "gnt_00x", Workload: "spiffe://td/agents/a/b", Client: "spiffe://td/agents/a/b", Expires: now.Add(time.Minute),
		Task: Task{Path: []string{"tsk_00root", "tsk_00child"}}, epoch: 1, number: 5,
	}
}

// BenchmarkDenied looks a grant up among a million denials.
func BenchmarkDenied(b *testing.B) {
	now := time.Now()
	v, g := fullView(b, now, DefaultMaxEntries)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.judge(g, now); err != nil {
			b.Fatal(err)
		}
	}
}

// TestDeniedDoesNotAllocate looks a live grant and a dead one up among a million denials.
func TestDeniedDoesNotAllocate(t *testing.T) {
	now := time.Now()
	v, g := fullView(t, now, 10_000) // their number is the benchmark's
	dead := *g
	dead.Task.Path = []string{"tsk_00root", "tsk_003"}
	for name, c := range map[string]struct {
		grant *Grant
		want  error
	}{"alive": {g, nil}, "dead": {&dead, ErrRevoked}} {
		if _, err := v.judge(c.grant, now); err != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = v.judge(c.grant, now) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestAnEventIsNoSnapshot: after a proof of freshness was the first to tell of a new data set, what
// that one denied before is not known until a snapshot has said it.
func TestAnEventIsNoSnapshot(t *testing.T) {
	v := testView(nil)
	now := time.Now()
	if err := v.snapshot(wire.Position{Epoch: 1, Numbers: []uint64{0}}, nil, now); err != nil {
		t.Fatal(err)
	}
	next := wire.Position{Epoch: 2, Numbers: []uint64{7}}
	if err := v.prove(proof{asOf: now, position: next}); err != nil {
		t.Fatal(err)
	}
	if err := v.event(next, nil, now); !errors.Is(err, errResync) {
		t.Errorf("an event: %v", err)
	}
	g := &Grant{ID: "gnt_00x", Expires: now.Add(time.Minute), epoch: 2, number: 3, Task: Task{Path: []string{"tsk_00x"}}}
	if _, err := v.judge(g, now); !errors.Is(err, ErrStale) {
		t.Errorf("a token of the new data set: %v", err)
	}
}

// TestViewMillion fills a view of the default size in bursts, at the end with one entry too many.
func TestViewMillion(t *testing.T) {
	t.Parallel()
	now := time.Now()
	v := newView(Config{Audience: "orders", MaxEntries: DefaultMaxEntries, MaxStale: DefaultMaxStale, Leeway: DefaultLeeway})
	if err := v.snapshot(wire.Position{Epoch: 1, Numbers: []uint64{0}}, nil, now); err != nil {
		t.Fatal(err)
	}
	id := func(n int) string { return "gnt_00" + strconv.Itoa(n) }
	burst := make([]wire.FeedEntry, 10_000)
	for n := 0; n < DefaultMaxEntries; n += len(burst) {
		for i := range burst {
			burst[i] = wire.FeedEntry{Number: uint64(n + i + 1), Kind: wire.KindGrant, ID: id(n + i), Until: now.Add(time.Minute)}
		}
		if err := v.event(wire.Position{Epoch: 1, Numbers: []uint64{uint64(n + len(burst))}}, burst, now); err != nil {
			t.Fatal(err)
		}
	}
	grant := func(n int) *Grant { return &Grant{ID: id(n), epoch: 1, Expires: now.Add(time.Minute)} }
	for _, n := range []int{0, 1, DefaultMaxEntries / 2, DefaultMaxEntries - 1} {
		if !v.dead(grant(n)) {
			t.Errorf("entry %d is not in force", n)
		}
	}
	if v.dead(grant(DefaultMaxEntries)) || v.entries() != DefaultMaxEntries {
		t.Errorf("%d entries", v.entries())
	}
	over := wire.Position{Epoch: 1, Numbers: []uint64{DefaultMaxEntries + 1}}
	err := v.event(over, []wire.FeedEntry{{Number: DefaultMaxEntries + 1, Kind: wire.KindGrant, ID: "gnt_00over", Until: now.Add(time.Minute)}}, now)
	if _, ok := v.at(); !errors.Is(err, errResync) || ok || !v.dead(grant(0)) {
		t.Errorf("one more: %v", err)
	}
	v.sweep(now.Add(2 * time.Minute))
	if n := v.entries(); n != 0 {
		t.Errorf("%d entries when all are over", n)
	}
}
