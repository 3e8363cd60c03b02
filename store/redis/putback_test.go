package redis_test

import (
	"errors"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/storetest"
)

// sets is a data set in which somebody deletes what tasks have in the sets.
type sets struct {
	*testing.T
	*server
	storetest.Backend
	store *data
	tasks []broker.Task // as they began: every third is in another system, every fourth below the one before
}

const manyTasks = 120

func newSets(t *testing.T) *sets {
	s := &sets{T: t, server: start(t)}
	s.Backend = backend(s.URL(), 1)
	s.store = s.New(t, 1).(*data)
	for i := range manyTasks {
		req := beginning()
		req.Begin.Lease = []time.Duration{20 * time.Second, 10 * time.Minute}[i%2]
		if i%3 == 0 {
			req.Begin.Ref = broker.TaskRef{Kind: "ci/run", ID: "7"}
		}
		if i%4 == 3 {
			req.Begin.Parent = s.tasks[i-1].ID
		}
		reply, err := s.store.Grant(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		s.tasks = append(s.tasks, reply.Task)
	}
	return s
}

func (s *sets) key(name string) string { return "test1:{p00}:" + name }

// due are the tasks that a sweeper finds, in its way.
func (s *sets) due() []string {
	s.T.Helper()
	ids, _ := all(s.T, s.store, broker.Query{Due: true})
	return ids
}

// lapsed are the tasks that have lapsed, by what a look-up says of each; it wants all others to live.
func (s *sets) lapsed() (ids []string) {
	s.T.Helper()
	for i, task := range s.tasks {
		record, err := s.store.Lookup(s.Context(), broker.Ref{Task: task.ID})
		if err != nil {
			s.Fatal(err)
		}
		dies := i%2 == 0
		above := i%4 == 3 // below one that does
		if record.Task.State.Final() != (dies || above) {
			s.Fatalf("task %d is %s", i, record.Task.State)
		}
		if dies {
			ids = append(ids, string(task.ID))
		}
	}
	slices.Sort(ids)
	return ids
}

// rounds are enough looks at what is due for all tasks to have been looked at.
func (s *sets) rounds() {
	s.T.Helper()
	for range manyTasks {
		s.due()
	}
}

// TestPutBack deletes one of the sets that tasks are in, or a member of each: no life is wrong, and after some looks at what is
// due all is there again. What has lapsed is found and can be announced, the lists have all tasks, and in the end all is gone.
func TestPutBack(t *testing.T) {
	t.Parallel()
	for what, lose := range map[string]func(s *sets){
		"alarms": func(s *sets) { s.client.Del(s.Context(), s.key("alarms")) },
		"due":    func(s *sets) { s.client.Del(s.Context(), s.key("due")) },
		"lists":  func(s *sets) { s.client.Del(s.Context(), s.key("lists")) },
		"all":    func(s *sets) { s.client.Del(s.Context(), s.key("alarms"), s.key("due"), s.key("lists")) },
		"single members": func(s *sets) {
			s.client.ZRem(s.Context(), s.key("alarms"), bare(s.tasks[0].ID), bare(s.tasks[1].ID))
			s.client.ZRem(s.Context(), s.key("due"), bare(s.tasks[2].ID))
			id := bare(s.tasks[3].ID)
			s.client.ZRem(s.Context(), s.key("lists"), "t"+id, "b"+bare(s.tasks[2].ID)+id)
		},
	} {
		for when, early := range map[string]bool{"before anything is due": true, "when it is due": false} {
			t.Run(what+" "+when, func(t *testing.T) {
				t.Parallel()
				s := newSets(t)
				if early {
					lose(s)
				}
				s.Advance(30 * time.Second)
				if !early {
					s.due()
					lose(s)
				}
				lapsed := s.lapsed()
				s.rounds()
				if got := s.due(); !slices.Equal(got, lapsed) {
					t.Fatalf("%d tasks are due; want the %d that have lapsed", len(got), len(lapsed))
				}
				s.listed()
				for _, id := range lapsed {
					e := broker.Ending{Kind: broker.TargetTask, Task: broker.TaskID(id), IfDue: true, Event: broker.NewEventID()}
					if r := end(t, s.store, e).Receipt; !r.First || r.State != broker.Lapsed {
						t.Fatalf("%+v; want it to lapse now", r)
					}
				}
				if update, err := first(t.Context(), s.store, broker.Position{}); err != nil || len(update.Entries) != len(lapsed) {
					t.Errorf("the feed has %d entries, error %v; want %d", len(update.Entries), err, len(lapsed))
				}
				for range 3 {
					s.Advance(30 * time.Minute)
					s.rounds()
				}
				for _, name := range []string{"tasks", "alarms", "due", "requests", "usage"} {
					if s.client.Exists(t.Context(), s.key(name)).Val() != 0 {
						t.Errorf("there still is %s", name)
					}
				}
				if n := s.client.ZCard(t.Context(), s.key("lists")).Val(); n != 0 {
					t.Errorf("the lists still have %d members", n)
				}
				if _, err := s.store.Lookup(t.Context(), broker.Ref{Task: s.tasks[0].ID}); !errors.Is(err, broker.ErrNotFound) {
					t.Errorf("Lookup: %v; want ErrNotFound", err)
				}
			})
		}
	}
}

// listed wants the lists to have all tasks.
func (s *sets) listed() {
	s.T.Helper()
	var every, refs []string
	for i, task := range s.tasks {
		every = append(every, string(task.ID))
		if i%3 == 0 {
			refs = append(refs, string(task.ID))
		}
	}
	tree := []string{string(s.tasks[2].ID), string(s.tasks[3].ID)}
	for what, test := range map[string]struct {
		query broker.Query
		want  []string
	}{
		"all":   {broker.Query{}, every},
		"ref":   {broker.Query{Ref: broker.TaskRef{Kind: "ci/run", ID: "7"}}, refs},
		"below": {broker.Query{Below: s.tasks[2].ID}, tree},
	} {
		got, _ := all(s.T, s.store, test.query)
		slices.Sort(test.want)
		if !slices.Equal(got, test.want) {
			s.Errorf("%s: the list has %d tasks; want %d", what, len(got), len(test.want))
		}
	}
}

// TestPutBackIsBounded: one look at what is due looks at a small part of many tasks, and writes nothing when nothing is missing.
func TestPutBackIsBounded(t *testing.T) {
	t.Parallel()
	s := newSets(t)
	alarms := func() int64 { return s.client.ZCard(t.Context(), s.key("alarms")).Val() }
	s.client.Del(t.Context(), s.key("alarms"))
	before := int64(0)
	looks := 0
	for ; alarms() < manyTasks; looks++ {
		s.due()
		now := alarms()
		if now-before > 50 || looks > manyTasks {
			t.Fatalf("look %d: %d alarms, and %d before", looks, now, before)
		}
		before = now
	}
	if looks < 3 {
		t.Errorf("%d looks were enough for %d tasks", looks, manyTasks)
	}
	changes := func() string {
		return regexp.MustCompile(`rdb_changes_since_last_save:\d+`).FindString(s.Must("INFO", "persistence"))
	}
	s.due() // the last alarms ring
	was := changes()
	s.rounds()
	if now := changes(); now != was {
		t.Errorf("%s changes, and %s before; want none by a look that finds all in order", now, was)
	}
}
