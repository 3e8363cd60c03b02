package redis_test

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// TestWrongType puts a list where each of the keys should be: the calls that need it say so, each error is one of the
// contract's, and what has ended stays so.
func TestWrongType(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string][]string{
		"meta": {
			"Grant", "Join", "Heartbeat", "End", "End of a grant", "End of all", "Lookup", "Lookup of a grant", "List", "List of what is due", "Watch",
			"Read", "Post", "Notes",
		},
		"tasks":            {"Grant", "Join", "Heartbeat", "End", "End of a grant", "Lookup", "Lookup of a grant", "List", "List of what is due"},
		"g:":               {"End of a grant", "Lookup of a grant"},
		"j:":               {"Join"}, // counts as used
		"requests":         {"Grant"},
		"lists":            {"Grant", "Join", "List"},
		"due":              {"List of what is due"},
		"alarms":           {"Grant", "Join", "List of what is due"},
		"usage":            {"Grant", "Join", "End"},
		"feed":             {"End", "End of a grant", "End of all", "Watch"},
		"denials":          {"End of all", "Watch"},
		"locks":            {"End of all", "Watch"},
		"record:keys":      {"Read"},
		"board:kind":       {"Post", "Notes"},
		"board:kind:until": {"Post"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			var log lines
			store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
			live, other, ended := begin(t, store), begin(t, store), begin(t, store)
			end(t, store, completing(ended.Task.ID))
			delegation := broker.NewDelegationID()
			key := "errand:{p00}:" + name
			switch name {
			case "g:":
				key += bare(live.Grants[0].ID)
			case "j:":
				key = keyOfJoin(delegation)
			}
			s.client.Del(t.Context(), key)
			if err := s.client.LPush(t.Context(), key, "not ours").Err(); err != nil {
				t.Fatal(err)
			}
			for what, call := range callsOf(store, live, other.Task.ID, delegation) {
				err := call(t.Context())
				told := errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnconfirmed)
				if name == "j:" {
					told = errors.Is(err, broker.ErrUsed)
				}
				if (err != nil) != slices.Contains(fails, what) || err != nil && !told {
					t.Errorf("%s: %v; want ErrUnavailable, ErrUnconfirmed, or ErrUsed of a delegation, when it is one of %q, and else none", what, err, fails)
				}
				if name != "j:" && err != nil && !(strings.Contains(err.Error(), "the key "+key+" has become a list and must be a ") && strings.Contains(err.Error(), "DEL it; ")) {
					t.Errorf("%s: %v; want the key %s named, and what to do", what, err, key)
				}
			}
			stillEnded(t, store, ended)
			if n := log.with(key + " "); n != 1 {
				t.Errorf("the log names %s in %d lines; want 1", key, n)
			}
			// What failed half way has left nothing behind that keeps later ends from working.
			s.client.Del(t.Context(), key)
			if name != "meta" && name != "tasks" && name != "feed" {
				end(t, store, completing(begin(t, store).Task.ID))
				end(t, store, broker.Ending{Kind: broker.TargetAll})
			}
		})
	}
}

// TestWrongTypeAtTheStart: a store that cannot begin says which key is in its way.
func TestWrongTypeAtTheStart(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"meta", "feed"} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			key := "errand:{p02}:" + name
			s.client.Set(t.Context(), key, "not ours", 0)
			store, err := redis.New(t.Context(), redis.Config{URL: s.URL(), Shards: 4, Logger: slog.New(slog.DiscardHandler)}.Patient())
			if err == nil {
				_ = store.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "the key "+key+" has become a string and must be a ") {
				t.Errorf("New: %v; want the key %s named", err, key)
			}
		})
	}
}

// TestWrongTypeOfOneOfMany: of the calls of one run those that meet the key name it, and no call that goes well asks for types.
func TestWrongTypeOfOneOfMany(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	good, bad := begin(t, store), begin(t, store)
	asked := func() string {
		return regexp.MustCompile(`cmdstat_type:calls=\d+`).FindString(s.Must("INFO", "commandstats"))
	}
	was := asked() // by New; what denies by a property, and who watches, ask in their scripts
	end(t, store, completing(begin(t, store).Task.ID))
	if _, err := store.List(t.Context(), broker.Query{}); err != nil || asked() != was {
		t.Errorf("types were asked for without need, or error %v: %s", err, s.Must("INFO", "commandstats"))
	}
	key := "errand:{p00}:g:" + bare(bad.Grants[0].ID)
	s.client.Del(t.Context(), key)
	s.client.SAdd(t.Context(), key, "not ours")
	for id, want := range map[broker.GrantID]string{good.Grants[0].ID: "", bad.Grants[0].ID: "the key " + key + " has become a set and must be a string: "} {
		_, err := store.Lookup(t.Context(), broker.Ref{Grant: id})
		if err != nil != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("Lookup: %v; want %q", err, want)
		}
	}
	if asked() == was {
		t.Error("nobody has asked for types")
	}
}

// callsOf are those of each kind, on a live task and its grant, and on another one that may be ended. They may be made in
// any order.
func callsOf(store *redis.Store, live broker.GrantReply, other broker.TaskID, delegation broker.DelegationID) map[string]func(context.Context) error {
	endOf := func(e broker.Ending) func(context.Context) error {
		return func(ctx context.Context) error {
			replies, err := store.End(ctx, []broker.Ending{e})
			if err == nil {
				err = replies[0].Err
			}
			return err
		}
	}
	lookup := func(ref broker.Ref) func(context.Context) error {
		return func(ctx context.Context) error { _, err := store.Lookup(ctx, ref); return err }
	}
	list := func(q broker.Query) func(context.Context) error {
		return func(ctx context.Context) error { _, err := store.List(ctx, q); return err }
	}
	keyed := beginning()
	keyed.Begin.Key = "key"
	return map[string]func(context.Context) error{
		"Grant": func(ctx context.Context) error { _, err := store.Grant(ctx, keyed); return err },
		"Join": func(ctx context.Context) error {
			_, err := store.Grant(ctx, joining(live.Task, delegation))
			return err
		},
		"Heartbeat": func(ctx context.Context) error {
			_, err := store.Heartbeat(ctx, []broker.Beat{{Task: other, Workload: alice}})
			return err
		},
		"End":                 endOf(completing(other)),
		"End of a grant":      endOf(broker.Ending{Kind: broker.TargetGrant, Grant: live.Grants[0].ID, Cause: broker.CauseOperator}),
		"End of all":          endOf(broker.Ending{Kind: broker.TargetAll}),
		"Lookup":              lookup(broker.Ref{Task: other}),
		"Lookup of a grant":   lookup(broker.Ref{Grant: live.Grants[0].ID}),
		"List":                list(broker.Query{}),
		"List of what is due": list(broker.Query{Due: true}),
		"Watch":               func(ctx context.Context) error { _, err := first(ctx, store, broker.Position{}); return err },
		"Read":                func(ctx context.Context) error { _, _, _, err := store.Record("keys").Read(ctx); return err },
		"Post": func(ctx context.Context) error {
			return store.Post(ctx, broker.BoardNote{Kind: "kind", ID: "id", Life: time.Minute})
		},
		"Notes": func(ctx context.Context) error { _, err := store.Notes(ctx, "kind"); return err },
	}
}

// stillEnded wants an ended task to be alive for no call that answers.
func stillEnded(t *testing.T, store *redis.Store, ended broker.GrantReply) {
	t.Helper()
	for _, ref := range []broker.Ref{{Task: ended.Task.ID}, {Grant: ended.Grants[0].ID}} {
		record, err := store.Lookup(t.Context(), ref)
		if err == nil && (record.Task.State == broker.Active || record.Grant.Live(record.Now, record.Task)) {
			t.Errorf("Lookup of %v: %+v; want an ended one", ref, record)
		}
	}
	pulses, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: ended.Task.ID, Workload: alice}})
	if err == nil && pulses[0].Err == nil && pulses[0].Task.State == broker.Active {
		t.Errorf("Heartbeat: %+v; want an ended task", pulses[0])
	}
	page, err := store.List(t.Context(), broker.Query{})
	for _, task := range page.Tasks {
		if err == nil && task.ID == ended.Task.ID && task.State == broker.Active {
			t.Errorf("List: %+v; want an ended task", task)
		}
	}
	more := beginning()
	more.Task, more.Begin = ended.Task.ID, nil
	if got, err := store.Grant(t.Context(), more); err == nil {
		t.Errorf("a further token in an ended task: %+v", got)
	}
}
