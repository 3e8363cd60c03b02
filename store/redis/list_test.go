package redis_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

const listsKey = "errand:{p00}:lists"

// all are the IDs of what all pages of a query have, and how many of the pages were empty.
func all(t *testing.T, store broker.Store, q broker.Query) (ids []string, empty int) {
	t.Helper()
	for {
		page, err := store.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range page.Tasks {
			ids = append(ids, string(task.ID))
		}
		for _, record := range page.Grants {
			ids = append(ids, string(record.Grant.ID))
		}
		if len(page.Tasks)+len(page.Grants) == 0 {
			empty++
		}
		if page.Next == "" {
			return ids, empty
		}
		if page.Next <= q.After {
			t.Fatalf("after %q comes the cursor %q", q.After, page.Next)
		}
		q.After = page.Next
	}
}

// TestLongSearch looks for what few have among what many have: each List ends after some rounds, and says
// where to go on.
func TestLongSearch(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{Shards: 3}.Rounds(1))
	bob := spiffeid.RequireFromString("spiffe://example.org/bob")
	var tasks, grants []string
	for _, err := range together(700, func(i int) error {
		_, err := store.Grant(t.Context(), in(i%2)) // the last shard stays empty
		return err
	}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		req := in(i % 2)
		req.Workload = bob
		req.Begin.Ref = broker.TaskRef{Kind: "ci/run", ID: "7"}
		reply, err := store.Grant(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		tasks = append(tasks, string(reply.Task.ID))
		grants = append(grants, string(reply.Grants[0].ID))
	}
	for _, q := range []broker.Query{{Workload: bob}, {Workload: bob, Grants: true}, {Workload: bob, Limit: 1}} {
		got, empty := all(t, store, q)
		slices.Sort(got)
		want := slices.Sorted(slices.Values(tasks))
		if q.Grants {
			want = slices.Sorted(slices.Values(grants))
		}
		if !slices.Equal(got, want) || empty < 2 {
			t.Errorf("%+v: got %v, and %d empty pages; want %v, and some", q, got, empty, want)
		}
	}
	if got, _ := all(t, store, broker.Query{Ref: broker.TaskRef{Kind: "ci/run", ID: "7"}}); len(got) != 4 {
		t.Errorf("by the ref: got %v; want 4", got)
	}
	if got, _ := all(t, store, broker.Query{}); len(got) != 704 {
		t.Errorf("got %d tasks; want 704", len(got))
	}
	if got, _ := all(t, store, broker.Query{Grants: true, Limit: 7}); len(got) != 704 {
		t.Errorf("got %d grants; want 704", len(got))
	}
}

// TestListsGoWithTheirTasks lets a busy task live on while its grants go, and then the task.
func TestListsGoWithTheirTasks(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := backend(s.URL(), 1)
	store := b.New(t, 1)
	lists := "test1:{p00}:lists"
	size := func() int64 { return s.client.ZCard(t.Context(), lists).Val() }
	req := beginning()
	req.Grants, req.Begin.Lease, req.Begin.Deadline, req.Begin.Ref = nil, 10*time.Minute, 24*time.Hour, broker.TaskRef{Kind: "ci/run", ID: "7"}
	root, err := store.Grant(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	req = beginning()
	req.Begin.Parent, req.Begin.Lease, req.Begin.Deadline = root.Task.ID, time.Minute, 24*time.Hour
	child, err := store.Grant(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	beat := func() {
		t.Helper()
		pulses, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: root.Task.ID, Workload: alice}, {Task: child.Task.ID, Workload: alice}})
		if err != nil || pulses[1].Task.State != broker.Active {
			t.Fatalf("got %+v, error %v; want living tasks", pulses, err)
		}
	}
	issue := func(n int) {
		t.Helper()
		for _, err := range together(n/16, func(int) error {
			more := broker.GrantRequest{Workload: alice, Task: child.Task.ID, Control: 1 << 40}
			for range 16 {
				more.Grants = append(more.Grants, broker.Asked{ID: broker.NewGrantID(0), Audience: "a", Life: time.Minute})
			}
			_, err := store.Grant(t.Context(), more)
			return err
		}) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	sweep := func() {
		t.Helper()
		if _, err := store.List(t.Context(), broker.Query{Due: true}); err != nil {
			t.Fatal(err)
		}
	}
	issue(3200) // more than one look at the task takes away
	// The child is looked at once in its lease, and again at once while there is more.
	for range 100 {
		b.Advance(2 * time.Second)
		beat()
		sweep()
	}
	if n := size(); n != 4 { // two tasks, one below the other, and one with a ref
		t.Fatalf("when all grants have gone, the lists have %d members; want those of the tasks: 4", n)
	}
	if got, _ := all(t, store, broker.Query{Grants: true}); len(got) != 0 {
		t.Errorf("there are still %d grants", len(got))
	}
	issue(3200)
	end(t, store, completing(root.Task.ID))
	b.Advance(time.Hour)
	for range 10 {
		sweep()
	}
	if n := size(); n != 0 {
		t.Errorf("when all tasks have gone, the lists have %d members; want none", n)
	}
	if n := s.client.ZCard(t.Context(), "test1:{p00}:alarms").Val(); n != 0 {
		t.Errorf("there are still %d alarms", n)
	}
}

// TestListsOfWhatCannotBeRead spoils records, and members of the index: lists leave them out.
func TestListsOfWhatCannotBeRead(t *testing.T) {
	s := start(t)
	var log lines
	store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
	ref := broker.TaskRef{Kind: "ci/run", ID: "7"}
	add := func(parent broker.TaskID) broker.GrantReply {
		req := beginning()
		req.Begin.Parent, req.Begin.Ref = parent, ref
		reply, err := store.Grant(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	root := add("")
	bad, spoilt, missing, good := add(root.Task.ID), add(root.Task.ID), add(root.Task.ID), add(root.Task.ID)
	s.client.HSet(t.Context(), "errand:{p00}:tasks", bare(bad.Task.ID), "junk")
	s.client.Set(t.Context(), "errand:{p00}:g:"+bare(spoilt.Grants[0].ID), "junk", goredis.KeepTTL)
	s.client.Del(t.Context(), "errand:{p00}:g:"+bare(missing.Grants[0].ID))
	s.client.ZAdd(t.Context(), listsKey, goredis.Z{Member: "t" + bare(broker.NewTaskID(0))}, goredis.Z{Member: "b" + bare(root.Task.ID) + bare(broker.NewTaskID(0))})
	wantTasks := []string{string(root.Task.ID), string(spoilt.Task.ID), string(missing.Task.ID), string(good.Task.ID)}
	wantGrants := []string{string(root.Grants[0].ID), string(good.Grants[0].ID)}
	for range 2 {
		for _, q := range []broker.Query{{}, {Below: root.Task.ID}, {Ref: ref}, {Grants: true}, {Grants: true, Below: root.Task.ID}, {Grants: true, Ref: ref}} {
			for _, q.Limit = range []int{0, 1} {
				got, _ := all(t, store, q)
				want := wantTasks
				if q.Grants {
					want = wantGrants
				}
				if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
					t.Errorf("%+v: got %v; want %v", q, got, want)
				}
			}
		}
	}
	for _, id := range []string{bare(bad.Task.ID), bare(spoilt.Grants[0].ID)} {
		if n := log.with(id); n != 1 {
			t.Errorf("%s is named in %d lines of the log; want 1", id, n)
		}
	}
}

// TestListsAndTheBoardFail has other types in their keys, and a server that is full.
func TestListsAndTheBoardFail(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	reply := begin(t, store)
	note := func(kind string) broker.BoardNote {
		return broker.BoardNote{Kind: kind, ID: "a", Text: []byte("text"), Life: time.Hour}
	}
	if err := store.Post(t.Context(), note("verifier"), note("revocation")); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"errand:{p00}:board:verifier", "errand:{p00}:board:verifier:until"} {
		if ttl := s.client.TTL(t.Context(), key).Val(); ttl <= 0 || ttl > time.Hour {
			t.Errorf("%s expires in %s; want an hour", key, ttl)
		}
	}
	if err := s.client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := store.Post(t.Context(), note("verifier")); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("Post when memory is full: %v; want ErrUnavailable", err)
	}
	if notes, err := store.Notes(t.Context(), "verifier"); err != nil || len(notes) != 1 {
		t.Errorf("Notes when memory is full: %+v, error %v; want the one", notes, err)
	}
	for _, q := range []broker.Query{{}, {Due: true}, {Grants: true}, {Below: reply.Task.ID}, {Of: reply.Task.ID, Grants: true}} {
		if _, err := store.List(t.Context(), q); err != nil {
			t.Errorf("List %+v when memory is full: %v", q, err)
		}
	}
	if err := s.client.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	s.client.HSet(t.Context(), "errand:{p00}:board:revocation", "b", "junk")
	if notes, err := store.Notes(t.Context(), "revocation"); err != nil || len(notes) != 1 || notes[0].ID != "a" {
		t.Errorf("with one that cannot be read: %+v, error %v; want the other", notes, err)
	}
	for _, key := range []string{listsKey, "errand:{p00}:board:verifier"} {
		s.client.Del(t.Context(), key)
		if err := s.client.LPush(t.Context(), key, "not ours").Err(); err != nil {
			t.Fatal(err)
		}
	}
	for what, call := range map[string]func() error{
		"List":  func() error { _, err := store.List(t.Context(), broker.Query{}); return err },
		"Grant": func() error { _, err := store.Grant(t.Context(), beginning()); return err },
		"Post":  func() error { return store.Post(t.Context(), note("verifier")) },
		"both":  func() error { return store.Post(t.Context(), note("verifier"), note("revocation")) },
		"Notes": func() error { _, err := store.Notes(t.Context(), "verifier"); return err },
	} {
		if err := call(); !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("%s of a key of another type: %v; want one of a store's errors", what, err)
		}
	}
}

// TestBoardPassesByItself: notes go that nobody comes by to take down.
func TestBoardPassesByItself(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	for i := range 300 { // a large hash, which is read in rounds
		if err := store.Post(t.Context(), broker.BoardNote{Kind: "verifier", ID: fmt.Sprint(i), Text: make([]byte, 100), Life: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	if notes, err := store.Notes(t.Context(), "verifier"); err != nil || len(notes) != 300 {
		t.Fatalf("got %d notes, error %v; want 300", len(notes), err)
	}
	for i := range 300 {
		if err := store.Post(t.Context(), broker.BoardNote{Kind: "verifier", ID: fmt.Sprint(i), Life: 50 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the board is empty", func() bool { return len(s.keys("errand:*board*")) == 0 })
}

// TestListsOfJunk has members in the sets that lists go through which are too short or too long: they are named once and taken
// away, and lists leave nothing else out.
func TestListsOfJunk(t *testing.T) {
	t.Parallel()
	s := start(t)
	var log lines
	store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
	root := begin(t, store)
	req := beginning()
	req.Begin.Parent, req.Begin.Ref = root.Task.ID, broker.TaskRef{Kind: "ci/run", ID: "7"}
	child, err := store.Grant(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	both := []string{string(root.Task.ID), string(child.Task.ID)}
	tokens := []string{string(root.Grants[0].ID), string(child.Grants[0].ID)}
	slices.Sort(both)
	slices.Sort(tokens)
	id := bare(root.Task.ID)
	junk := []string{"gabc", "g" + id, "g" + id + "xx", "t", "tabc", "t" + id + "x", "b" + id, "b" + id + "x"}
	for range 250 { // more than one look takes in
		junk = append(junk, "g0"+bare(broker.NewTaskID(0)), "t0"+bare(broker.NewTaskID(0))+"x")
	}
	for _, member := range junk {
		s.Must("ZADD", listsKey, "0", member)
	}
	s.Must("ZADD", "errand:{p00}:due", "0", "junk")
	for what, test := range map[string]struct {
		query broker.Query
		want  []string
	}{
		"all": {broker.Query{}, both}, "grants": {broker.Query{Grants: true}, tokens},
		"of":    {broker.Query{Grants: true, Of: root.Task.ID}, tokens[slices.Index(tokens, string(root.Grants[0].ID)):][:1]},
		"below": {broker.Query{Below: root.Task.ID}, both}, "below, grants": {broker.Query{Grants: true, Below: root.Task.ID}, tokens},
		"ref": {broker.Query{Ref: req.Begin.Ref}, []string{string(child.Task.ID)}}, "due": {broker.Query{Due: true}, nil},
	} {
		got, _ := all(t, store, test.query)
		if slices.Sort(got); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v; want %v", what, got, test.want)
		}
	}
	for _, key := range []string{"due", "lists"} {
		if log.with("errand:{p00}:"+key+" ") == 0 {
			t.Errorf("the log does not name what is in %s", key)
		}
	}
	if n := s.client.ZCard(t.Context(), listsKey).Val(); n > 7 {
		t.Errorf("the lists have %d members; want those of two tasks and two grants, and one that no list comes by", n)
	}
}
