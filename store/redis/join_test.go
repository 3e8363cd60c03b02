package redis_test

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

var bob = spiffeid.RequireFromString("spiffe://example.org/bob")

// joining asks for a task of bob's below one of alice's, by a delegation that is over in an hour.
func joining(parent broker.Task, delegation broker.DelegationID) broker.GrantRequest {
	req := beginning()
	req.Workload, req.Begin.Parent, req.Begin.Delegators = bob, parent.ID, []spiffeid.ID{alice}
	req.Begin.Join = &broker.Join{Delegation: delegation, Delegator: alice, Until: parent.Begun.Add(time.Hour)}
	return req
}

// joins makes a join and wants it to have begun a task, or to be refused.
func joins(t *testing.T, store broker.Store, req broker.GrantRequest, want error) broker.GrantReply {
	t.Helper()
	reply, err := store.Grant(t.Context(), req)
	if !errors.Is(err, want) || err == nil && (reply.Task.Parent() != req.Begin.Parent || reply.Task.Workload != bob) {
		t.Fatalf("Grant: got %+v, error %v; want error %v", reply, err, want)
	}
	return reply
}

func keyOfJoin(id broker.DelegationID) string { return "errand:{p00}:j:" + string(id[4:]) }

// TestJoinIsKept: the key goes away by itself, after the delegation is over.
func TestJoinIsKept(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	parent, delegation := begin(t, store).Task, broker.NewDelegationID()
	req := joining(parent, delegation)
	joins(t, store, req, nil)
	at, err := s.client.PExpireTime(t.Context(), keyOfJoin(delegation)).Result()
	if want := req.Begin.Join.Until.Add(broker.Margin); err != nil || at != time.Duration(want.UnixNano()) {
		t.Errorf("it expires at %d, error %v; want %d", at.Milliseconds(), err, want.UnixMilli())
	}
	// One that is over already leaves none.
	past := joining(parent, broker.NewDelegationID())
	past.Begin.Join.Until = parent.Begun
	joins(t, store, past, nil)
	if keys := s.keys("errand:{p00}:j:*"); len(keys) != 1 {
		t.Errorf("there are %v; want the one of the other", keys)
	}
	// The key stands for the moment as it is, and not for one just before it.
	sharp := joining(parent, broker.NewDelegationID())
	sharp.Begin.Join.Until = parent.Begun.Add(time.Hour + time.Nanosecond)
	joins(t, store, sharp, nil)
	at = s.client.PExpireTime(t.Context(), keyOfJoin(sharp.Begin.Join.Delegation)).Val()
	if want := parent.Begun.Add(time.Hour + time.Millisecond + broker.Margin); at != time.Duration(want.UnixNano()) {
		t.Errorf("one with a nanosecond more expires at %d; want %d", at.Milliseconds(), want.UnixMilli())
	}
}

// TestJoinWithoutScripts: what the server refused is sent again, and uses the delegation once.
func TestJoinWithoutScripts(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	parent := begin(t, store).Task
	for range 3 {
		delegation := broker.NewDelegationID()
		if err := s.client.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		joins(t, store, joining(parent, delegation), nil)
		if err := s.client.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		joins(t, store, joining(parent, delegation), broker.ErrUsed)
	}
}

// TestJoinWhenMemoryIsFull is refused, and uses nothing.
func TestJoinWhenMemoryIsFull(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	parent, delegation := begin(t, store).Task, broker.NewDelegationID()
	limit := func(bytes string) {
		t.Helper()
		if err := s.client.ConfigSet(t.Context(), "maxmemory", bytes).Err(); err != nil {
			t.Fatal(err)
		}
	}
	limit("1")
	joins(t, store, joining(parent, delegation), broker.ErrUnavailable)
	if keys := s.keys(keyOfJoin(delegation)); len(keys) != 0 {
		t.Errorf("a refused join has made %v", keys)
	}
	adopted, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: parent.ID, Workload: alice, Adopt: true}})
	if err != nil || adopted[0].Task.Holder != 2 {
		t.Errorf("an adoption: %+v, %v", adopted, err)
	}
	limit("0")
	joins(t, store, joining(parent, delegation), nil)
	joins(t, store, joining(parent, delegation), broker.ErrUsed)
}

// TestJoinUnconfirmed: who was not told what came of a join repeats it, and gets the task that has begun.
func TestJoinUnconfirmed(t *testing.T) {
	t.Parallel()
	s := start(t)
	proxy := redistest.Between(t, s.Addr())
	store, other := s.open(t, redis.Config{URL: proxy.URL()}), s.open(t, redis.Config{}.Patient())
	parent, delegation := begin(t, store).Task, broker.NewDelegationID()
	req := joining(parent, delegation)
	req.Begin.Key = "once"
	proxy.Set(redistest.Fault{Deaf: true})
	if reply, err := store.Grant(t.Context(), req); !errors.Is(err, broker.ErrUnconfirmed) {
		t.Fatalf("Grant: %+v, %v; want ErrUnconfirmed", reply, err)
	}
	joins(t, other, joining(parent, delegation), broker.ErrUsed)
	again := joining(parent, delegation) // with another ID, and other grants
	again.Begin.Key = "once"
	if reply := joins(t, other, again, nil); !reply.Replayed || reply.Task.ID != req.Task || len(reply.Grants) != 1 || reply.Grants[0].ID != req.Grants[0].ID {
		t.Errorf("repeated: got %+v; want the task %s and its grant", reply, req.Task)
	}
}

// TestJoinWhenDataAreLost: the parent is unknown in a new epoch, so that nothing joins below it.
func TestJoinWhenDataAreLost(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"errand:*", "errand:{p00}:meta", "errand:{p00}:[jm]*"} {
		t.Run(lost, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			store := s.open(t, redis.Config{}.Patient())
			parent, used, free := begin(t, store).Task, broker.NewDelegationID(), broker.NewDelegationID()
			joined := joins(t, store, joining(parent, used), nil)
			if err := s.client.Del(t.Context(), s.keys(lost)...).Err(); err != nil {
				t.Fatal(err)
			}
			joins(t, store, joining(parent, used), broker.ErrUnavailable)
			if _, err := first(t.Context(), store, broker.Position{}); !errors.Is(err, broker.ErrEpoch) {
				t.Fatalf("Watch: %v; want ErrEpoch", err)
			}
			joins(t, store, joining(parent, used), broker.ErrNotFound)
			joins(t, store, joining(parent, free), broker.ErrNotFound)
			if record, err := store.Lookup(t.Context(), broker.Ref{Task: joined.Task.ID}); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("the joined task: got %+v, error %v; want ErrNotFound", record, err)
			}
		})
	}
}

// TestJoinUnreadable: a record that cannot be read counts as used, and is named in the log.
func TestJoinUnreadable(t *testing.T) {
	s := start(t)
	var log lines
	store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
	parent := begin(t, store).Task
	for _, junk := range []string{"", "junk", "\xc0", "\x90", "\x93\x01\x00\xa0", "\x93\x02\x01\xa0", "\x93\x01\x01\xa1x"} {
		delegation := broker.NewDelegationID()
		s.client.Set(t.Context(), keyOfJoin(delegation), junk, time.Hour)
		req := joining(parent, delegation)
		joins(t, store, req, broker.ErrUsed)
		if n := log.with(string(delegation[4:])); n != 1 {
			t.Errorf("%q: it is named in %d lines of the log; want 1", junk, n)
		}
		if _, err := store.Lookup(t.Context(), broker.Ref{Task: req.Task}); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%q: the task that was refused: %v; want ErrNotFound", junk, err)
		}
		joins(t, store, joining(parent, broker.NewDelegationID()), nil)
	}
}

// TestJoinOfAnotherType: a key that has become something else counts as used, is named in the log, and is not written over.
func TestJoinOfAnotherType(t *testing.T) {
	t.Parallel()
	s := start(t)
	var log lines
	store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
	parent, delegation := begin(t, store).Task, broker.NewDelegationID()
	joins(t, store, joining(parent, delegation), nil)
	key := keyOfJoin(delegation)
	s.client.Del(t.Context(), key)
	if err := s.client.LPush(t.Context(), key, "not ours").Err(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		req := joining(parent, delegation)
		joins(t, store, req, broker.ErrUsed)
		if _, err := store.Lookup(t.Context(), broker.Ref{Task: req.Task}); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("the task that was refused: %v; want ErrNotFound", err)
		}
	}
	if n := log.with(string(delegation[4:])); n != 1 {
		t.Errorf("it is named in %d lines of the log; want 1", n)
	}
	if typ := s.client.Type(t.Context(), key).Val(); typ != "list" {
		t.Errorf("the key is a %s; want the list that it was", typ)
	}
	joins(t, store, joining(parent, broker.NewDelegationID()), nil)
}

// TestUnreadableDelegators: a task of which nobody knows in whose name it acts is shown to nobody.
func TestUnreadableDelegators(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	req := joining(begin(t, store).Task, broker.NewDelegationID())
	joined := joins(t, store, req, nil)
	tasks, id := "errand:{p00}:tasks", bare(joined.Task.ID)
	raw := []byte(s.client.HGet(t.Context(), tasks, id).Val())
	spoiled := false
	for i := range len(raw) - 6 {
		// The second SPIFFE ID in the record is the delegator's; the first is the workload's own.
		if string(raw[i:i+6]) == "spiffe" {
			if spoiled {
				raw[i] = 'x'
			}
			spoiled = true
		}
	}
	s.client.HSet(t.Context(), tasks, id, raw)
	if record, err := store.Lookup(t.Context(), broker.Ref{Task: joined.Task.ID}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("Lookup: got %+v, error %v; want ErrNotFound", record, err)
	}
	if reply, err := store.Grant(t.Context(), func() broker.GrantRequest {
		r := beginning()
		r.Workload, r.Task, r.Begin = bob, joined.Task.ID, nil
		return r
	}()); err == nil {
		t.Errorf("Grant: got %+v; want an error", reply)
	}
}
