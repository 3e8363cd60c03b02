package redis_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// TestFeedIsAhead: a feed that has come further than the shard knows, since what comes after an entry could not be written,
// hinders no end.
func TestFeedIsAhead(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	live, other := begin(t, store), begin(t, store)
	lock := broker.Lock{ID: broker.NewLockID(), Expires: live.Now.Add(time.Hour)}
	for i, e := range []broker.Ending{
		{Kind: broker.TargetKey, Key: "kid"}, {Kind: broker.TargetSelector, Selector: broker.Selector{Audience: "a"}}, {Kind: broker.TargetAll},
		{Kind: broker.TargetLock, Lock: lock}, {Kind: broker.TargetLift, Lock: lock},
		completing(live.Task.ID), {Kind: broker.TargetGrant, Grant: other.Grants[0].ID, Cause: broker.CauseOperator},
	} {
		number := uint64(100 * (i + 1))
		s.Must("XADD", "errand:{p00}:feed", slog.Uint64Value(number).String()+"-0", "kind", "", "target", "", "until", "1")
		if got := end(t, store, e).Receipt.Feed.Numbers[0]; got != number+1 {
			t.Errorf("%s: its number is %d; want %d", e.Kind, got, number+1)
		}
	}
	update, err := first(t.Context(), store, broker.Position{})
	if err != nil || len(update.Entries) != 5 || update.Position.Numbers[0] != 701 {
		t.Errorf("the feed is at %v with %d entries, error %v; want 701 and 5", update.Position, len(update.Entries), err)
	}
}

// TestDamagedEntries: nobody knows what an entry of the feed denies that cannot be read, so Watch fails and says where it is; and
// ends do not.
func TestDamagedEntries(t *testing.T) {
	t.Parallel()
	const until = "9999999999999"
	for name, entry := range map[string][]string{
		"one field":       {"x", "y"},
		"other names":     {"sort", "all", "aim", "", "till", until},
		"audience":        {"kind", "all", "target", "", "until", until, "audience", "a"},
		"unknown kind":    {"kind", "what", "target", "x", "until", until},
		"no moment":       {"kind", "all", "target", "", "until", "junk"},
		"not a moment":    {"kind", "all", "target", "", "until", "nan"},
		"a late moment":   {"kind", "all", "target", "", "until", "1e300"},
		"a short task":    {"kind", "task", "target", "ab", "until", until},
		"a short grant":   {"kind", "grant", "target", "", "until", until},
		"not a selector":  {"kind", "selector", "target", "ab", "until", until},
		"a long selector": {"kind", "selector", "target", "\x00\x00\x00\x00", "until", until},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			store := s.open(t, redis.Config{}.Patient())
			live := begin(t, store)
			const feed = "errand:{p00}:feed"
			s.Must(append([]string{"XADD", feed, "1-0"}, entry...)...)
			s.Must("HSET", "errand:{p00}:meta", "number", "1")
			for range 17 { // some of which tidy up
				end(t, store, broker.Ending{Kind: broker.TargetKey, Key: "kid"})
			}
			end(t, store, completing(live.Task.ID))
			for range 2 {
				update, err := first(t.Context(), store, broker.Position{})
				if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), `the record "1-0" in `+feed) || !strings.Contains(err.Error(), "delete it") {
					t.Fatalf("Watch: %+v, error %v; want ErrUnavailable that names the entry", update, err)
				}
			}
			s.Must("XDEL", feed, "1-0")
			if update, err := first(t.Context(), store, broker.Position{}); err != nil || len(update.Entries) != 18 {
				t.Errorf("then: %d entries, error %v; want 18", len(update.Entries), err)
			}
		})
	}
}
