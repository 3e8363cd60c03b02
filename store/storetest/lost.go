package storetest

import (
	"errors"
	"time"

	"github.com/errandhq/errand/broker"
)

func lostCases() []testCase {
	return []testCase{
		{"lost/ended all the same", lostEnd},
		{"lost/repeated", lostRepeated},
		{"lost/stays ended", lostStays},
		{"lost/a task that is there", lostThere},
		{"lost/refused", lostRefused},
	}
}

// losing ends a task of alice's that the store has never heard of.
func (b *bench) losing(id broker.TaskID, left time.Duration) broker.Ending {
	e := completing(broker.Task{ID: id, Workload: alice()})
	e.Lost = b.list(broker.Query{}).Now.Add(left)
	return e
}

func lostEnd(b *bench) {
	e := b.losing(broker.NewTaskID(b.shard), time.Minute)
	before := b.feed()
	reply := b.end(e)
	ended := reply.Receipt.Ended
	if ended.Before(before.Now) || ended.After(b.feed().Now) {
		b.Errorf("ended at %s; want the store's time of the call", ended)
	}
	want := broker.Task{
		ID: e.Task, Path: []broker.TaskID{e.Task}, Workload: alice(), Deadline: e.Lost,
		State: broker.Completed, Cause: broker.CauseCaller, Ended: ended,
	}
	b.same("the task in the reply", reply.Task, want)
	b.same("the task, looked up", b.now(want), want)
	b.same("the tasks", b.list(broker.Query{Workload: alice()}).Tasks, []broker.Task{want})
	b.same("the receipt", reply.Receipt, broker.Receipt{
		Event: e.Event, Task: e.Task, State: broker.Completed, Cause: broker.CauseCaller, Reason: e.Reason,
		Ended: ended, Feed: b.feed().Position, Durable: reply.Receipt.Durable, First: true,
	})
	b.same("the entry", b.entries(ofTask(want)), []broker.Entry{{
		Shard: b.shard, Number: before.Position.Numbers[b.shard] + 1, Denial: ofTask(want), Until: e.Lost.Add(broker.Margin),
	}})
	if !b.entry(ofTask(want)).For("whatever") {
		b.Error("the entry is not addressed to everybody")
	}
	b.same("what is due", len(b.list(broker.Query{Due: true}).Tasks), 0)
}

func lostRepeated(b *bench) {
	e := b.losing(broker.NewTaskID(b.shard), time.Minute)
	first := b.end(e).Receipt
	b.Advance(50 * time.Millisecond)
	before := b.feed().Position
	again, without, swept := e, e, due(e.Task)
	again.Event, again.State, again.Lost = broker.NewEventID(), broker.Failed, e.Lost.Add(time.Hour)
	without.Event, without.Lost = broker.NewEventID(), time.Time{}
	want := first
	want.First = false
	for _, e := range []broker.Ending{e, again, without, swept} {
		b.same("the repeated receipt", b.end(e).Receipt, want)
	}
	b.same("the feed's position", b.feed().Position, before)
}

// lostStays tries everything that could bring it to life.
func lostStays(b *bench) {
	e := b.losing(broker.NewTaskID(b.shard), time.Minute)
	b.end(e)
	task := broker.Task{ID: e.Task, Workload: alice()}
	again := b.root(key("k", 1), asking(b.ask("a", time.Minute)))
	again.Task = e.Task
	b.refused(again, broker.ErrEnded)
	b.refused(b.issuing(task, b.ask("a", time.Minute)), broker.ErrEnded)
	b.refused(b.root(below(task)), broker.ErrEnded)
	if pulse := b.beat(task); pulse.Err != nil || pulse.Task.State != broker.Completed {
		b.Errorf("Heartbeat: got %+v; want a completed task", pulse)
	}
	b.state(task, broker.Completed)
	// It counts for no quota, and the refused begin has not used up its key.
	b.begin(key("k", 1), quota(broker.Quota{Tasks: 1}))
}

func lostThere(b *bench) {
	task := b.begin(asking(b.ask("a", time.Minute)))
	e := completing(task)
	e.Lost = task.Deadline
	reply := b.end(e)
	if !reply.Receipt.First || reply.Receipt.Grants != 1 || reply.Task.Name != task.Name {
		b.Errorf("got %+v; want the end of a task that is there", reply)
	}
	b.same("the entry's audiences", b.entry(ofTask(task)).Audiences, []string{"a"})
}

func lostRefused(b *bench) {
	mine := b.begin()
	foreign := completing(mine)
	foreign.Workload, foreign.Lost = bob(), mine.Deadline
	buried := b.losing(broker.NewTaskID(b.shard), time.Minute)
	b.end(buried)
	notHis := buried
	notHis.Workload = bob()
	nowhere := b.losing(broker.NewTaskID(b.shards), time.Minute)
	past := b.losing(broker.NewTaskID(b.shard), -broker.Margin)
	anybodys := b.losing(broker.NewTaskID(b.shard), time.Minute)
	anybodys.Workload = due("").Workload
	open := b.losing(broker.NewTaskID(b.shard), time.Minute)
	open.State = broker.Active
	before := b.feed().Position
	for name, test := range map[string]struct {
		ending broker.Ending
		want   error
	}{
		"another's task":      {foreign, broker.ErrNotFound},
		"another's lost task": {notHis, broker.ErrNotFound},
		"a shard too far":     {nowhere, broker.ErrNotFound},
		"too late to matter":  {past, broker.ErrNotFound},
		"nobody's":            {anybodys, broker.ErrInvalid},
		"not final":           {open, broker.ErrInvalid},
	} {
		if reply := b.ends(test.ending)[0]; !errors.Is(reply.Err, test.want) {
			b.Errorf("%s: got %+v; want %v", name, reply, test.want)
		}
	}
	b.same("the feed's position", b.feed().Position, before)
	b.state(mine, broker.Active)
}

func agingLost(b *bench) {
	e := b.losing(broker.NewTaskID(b.shard), 2*time.Minute)
	b.end(e)
	task := broker.Task{ID: e.Task, Workload: alice()}
	b.until(e.Lost.Add(broker.Margin), time.Second)
	b.entry(ofTask(task))
	b.stays(task, e.Lost.Add(broker.Margin))
	b.same("the entries", len(b.entries(ofTask(task))), 0)
	if reply := b.ends(e)[0]; !errors.Is(reply.Err, broker.ErrNotFound) {
		b.Fatalf("End when no token can be left: got %+v; want ErrNotFound", reply)
	}
}

// agingLostLong: what the store has lost has issued nothing since, so that a far deadline keeps nothing.
func agingLostLong(b *bench) {
	e := b.losing(broker.NewTaskID(b.shard), 20*time.Hour)
	last := b.end(e).Receipt.Ended.Add(broker.MaxTokenLife)
	task := broker.Task{ID: e.Task, Workload: alice()}
	b.same("the entry's end", b.entry(ofTask(task)).Until, last.Add(broker.Margin))
	b.until(last.Add(broker.Margin), time.Second)
	b.entry(ofTask(task))
	b.state(task, broker.Completed)
	b.stays(task, last.Add(broker.Margin))
	b.same("the entries", len(b.entries(ofTask(task))), 0)
}

// agingLostOrphan: one that is there without the tasks above it is as good as lost.
func agingLostOrphan(b *bench) {
	root := b.begin(lease(10 * time.Second))
	child := b.begin(below(root), key("child", 1), lease(10*time.Minute))
	b.until(root.LeaseEnd.Add(broker.Margin), -grace)
	b.absent(child.ID)
	e := completing(child)
	e.Lost = child.Deadline
	last := b.end(e).Receipt.Ended.Add(broker.MaxTokenLife)
	b.state(child, broker.Completed)
	b.same("its path", b.now(child).Path, []broker.TaskID{child.ID})
	b.entry(ofTask(child))
	b.begin(quota(broker.Quota{Tasks: 1}))
	b.until(child.LeaseEnd.Add(broker.Margin), -grace)
	b.state(child, broker.Completed)
	b.same("what is due", len(b.list(broker.Query{Due: true}).Tasks), 0)
	b.stays(child, last.Add(broker.Margin))
}
