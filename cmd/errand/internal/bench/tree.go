package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"golang.org/x/sync/errgroup"
)

const (
	treeSamples = 200 // tasks of the tree whose tokens are watched
	loneEnds    = 100 // ends of tasks without a tree, to compare with
)

// tree is what the end of one takes.
type tree struct {
	descendants int
	write, lone durations // of the store's answers
	refused     durations // after the tree's
}

func (t tree) String() string {
	return fmt.Sprintf("One write ends a task with %d below it: %s ms at the store, where a task with nothing below takes %s ms (median). A connected verifier refuses %d tokens from all over the tree %s ms after the answer at p50, %s ms at p99.",
		t.descendants, milli(t.write.at(50)), milli(t.lone.at(50)), len(t.refused), milli(t.refused.at(50)), milli(t.refused.at(99)))
}

// fell builds a tree through the store itself, has a verifier accept tokens from all over it, and ends its
// root.
func (p *place) fell(ctx context.Context, descendants int) (t tree, err error) {
	t.descendants = descendants
	store, err := redis.New(ctx, redis.Config{URL: p.url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return t, err
	}
	defer store.Close()
	for range loneEnds {
		lone, err := store.Grant(ctx, treeTask("", 1))
		if err != nil {
			return t, err
		}
		if err := timeEnd(ctx, store, lone.Task.ID, &t.lone); err != nil {
			return t, err
		}
	}
	all, err := growTree(ctx, store, descendants)
	if err != nil {
		return t, err
	}
	return t, p.fellAt(ctx, store, all, &t)
}

func (p *place) fellAt(ctx context.Context, store broker.Store, all []broker.TaskID, t *tree) error {
	w, err := p.watch(ctx, min(treeSamples, len(all)), func(i, n int) broker.TaskID { return all[i*len(all)/n] })
	if err != nil {
		return err
	}
	defer w.close()
	if err := timeEnd(ctx, store, all[0], &t.write); err != nil {
		return err
	}
	t.refused, err = w.refused(ctx, time.Now())
	return err
}

// timeEnd ends a task at the store.
func timeEnd(ctx context.Context, store broker.Store, id broker.TaskID, into *durations) error {
	start := time.Now()
	replies, err := store.End(ctx, []broker.Ending{{
		Kind: broker.TargetTask, Task: id, Workload: name("report"), State: broker.Completed, Cause: broker.CauseCaller, Event: broker.NewEventID(),
	}})
	*into = append(*into, time.Since(start))
	if err != nil {
		return err
	}
	return replies[0].Err
}

// growTree returns the tasks of a tree, its root first, each as high up as there is room.
func growTree(ctx context.Context, store broker.Store, descendants int) ([]broker.TaskID, error) {
	fanOut := 2
	for room(fanOut) < descendants {
		fanOut++
	}
	all := make([]broker.TaskID, 1, descendants+1)
	root, err := store.Grant(ctx, treeTask("", 0))
	if err != nil {
		return nil, err
	}
	all[0] = root.Task.ID
	for level := all; len(all) <= descendants; {
		n := min(len(level)*fanOut, descendants+1-len(all))
		next := make([]broker.TaskID, n)
		group, growing := errgroup.WithContext(ctx)
		group.SetLimit(fillers)
		for i := range next {
			group.Go(func() error {
				reply, err := store.Grant(growing, treeTask(level[i/fanOut], 0))
				next[i] = reply.Task.ID
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		all = append(all, next...)
		level = next
	}
	return all, nil
}

// room is how many descendants a task has at most, with so many children each.
func room(fanOut int) (n int) {
	level := 1
	for range broker.MaxDepth - 1 {
		level *= fanOut
		n += level
	}
	return n
}

// treeTask is a task with so many grants.
func treeTask(parent broker.TaskID, grants int) broker.GrantRequest {
	req := liveTask()
	req.Begin.Parent, req.Grants = parent, req.Grants[:grants]
	return req
}
