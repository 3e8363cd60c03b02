package redis_test

import (
	"context"
	"errors"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// inShard begins a task in a shard.
func inShard(t *testing.T, store broker.Store, shard int) broker.GrantReply {
	t.Helper()
	req := beginning()
	req.Task, req.Grants[0].ID = broker.NewTaskID(shard), broker.NewGrantID(shard)
	reply, err := store.Grant(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// TestEndOfSome: a grant whose key has become something else, and a shard that is away, hold up no other end of the call. Each of
// theirs has its own error, and happens once the way is free.
func TestEndOfSome(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{Shards: 4}.Patient())
	good, spoiled, away, last := inShard(t, store, 0), inShard(t, store, 1), inShard(t, store, 2), inShard(t, store, 3)
	revoking := func(g broker.GrantReply) broker.Ending {
		return broker.Ending{Kind: broker.TargetGrant, Grant: g.Grants[0].ID, Cause: broker.CauseOperator, Event: broker.NewEventID()}
	}
	key, meta := "errand:{p01}:g:"+bare(spoiled.Grants[0].ID), "errand:{p02}:meta"
	s.client.Rename(t.Context(), key, key+"x")
	s.client.LPush(t.Context(), key, "not ours")
	s.client.Rename(t.Context(), meta, meta+"x")
	s.client.LPush(t.Context(), meta, "not ours")
	ends := []broker.Ending{
		completing(good.Task.ID), revoking(spoiled), completing(spoiled.Task.ID), completing(away.Task.ID), {Kind: broker.TargetAll, Event: broker.NewEventID()},
		completing(broker.NewTaskID(0)), completing(last.Task.ID), {Kind: "what"},
	}
	want := []error{nil, broker.ErrUnconfirmed, nil, broker.ErrUnconfirmed, broker.ErrUnconfirmed, broker.ErrNotFound, nil, broker.ErrInvalid}
	check := func(want []error, first ...int) {
		t.Helper()
		replies, err := store.End(t.Context(), ends)
		if err != nil || len(replies) != len(ends) {
			t.Fatalf("End: %d replies, error %v", len(replies), err)
		}
		for i, r := range replies {
			if !errors.Is(r.Err, want[i]) || (r.Err == nil) != (want[i] == nil) {
				t.Errorf("target %d: error %v; want %v", i, r.Err, want[i])
			}
			if r.Err == nil && r.Receipt.Event != ends[i].Event && ends[i].Kind != broker.TargetAll {
				t.Errorf("target %d: %+v; want its own event", i, r.Receipt)
			}
		}
		for _, i := range first {
			if !replies[i].Receipt.First {
				t.Errorf("target %d: %+v; want it to have ended now", i, replies[i].Receipt)
			}
		}
	}
	check(want, 0, 2, 6)
	for _, e := range []broker.Ending{ends[1], ends[3]} {
		if replies, err := store.End(t.Context(), []broker.Ending{e, e}); !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("End of it alone: %+v, error %v; want ErrUnconfirmed", replies, err)
		}
	}
	for _, key := range []string{key, meta} {
		s.client.Rename(t.Context(), key+"x", key)
	}
	want[1], want[3], want[4] = nil, nil, nil
	check(want, 1, 3)
}

// TestEndOfNone: a call of which nothing can be told fails as a whole, and says so of what cannot have happened.
func TestEndOfNone(t *testing.T) {
	t.Parallel()
	store := start(t).open(t, redis.Config{Shards: 4}.Patient())
	a, b := inShard(t, store, 0), inShard(t, store, 3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if replies, err := store.End(ctx, []broker.Ending{completing(a.Task.ID), completing(b.Task.ID)}); !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnconfirmed) {
		t.Errorf("End: %+v, error %v; want ErrUnavailable", replies, err)
	}
	if replies, err := store.End(t.Context(), nil); err != nil || len(replies) != 0 {
		t.Errorf("End of nothing: %+v, error %v", replies, err)
	}
}
