package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"golang.org/x/sync/errgroup"
)

const (
	grantsPerTask = 20
	fillers       = 64
)

// memory is what live grants take in Redis.
type memory struct {
	grants, tasks int
	bytes         int64
}

// fill begins tasks with grants through the store itself, as a broker would, and looks at what Redis
// uses before and after.
func (p *place) fill(ctx context.Context, grants int) (memory, error) {
	store, err := redis.New(ctx, redis.Config{URL: p.url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return memory{}, err
	}
	defer store.Close()
	m := memory{tasks: grants / grantsPerTask}
	m.grants = m.tasks * grantsPerTask
	if m.tasks == 0 {
		return m, fmt.Errorf("%d grants are too few; a task has %d", grants, grantsPerTask)
	}
	before, err := p.memory()
	if err != nil {
		return m, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fillers)
	for range m.tasks {
		group.Go(func() error {
			_, err := store.Grant(ctx, liveTask())
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return m, err
	}
	after, err := p.memory()
	m.bytes = after - before
	return m, err
}

func (p *place) memory() (int64, error) {
	facts, err := p.info("memory")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(facts["used_memory"], 10, 64)
}

// liveTask looks like what the API begins, with grants that live as long as any.
func liveTask() broker.GrantRequest {
	req := broker.GrantRequest{
		Workload: name("report"), Task: broker.NewTaskID(0), Control: 1 << 40,
		Begin: &broker.Beginning{
			Name: "monthly-export", Purpose: "FIN-212 month end", Lease: broker.MaxLease, Deadline: time.Hour,
			Ceiling: broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}},
		},
	}
	for range grantsPerTask {
		req.Grants = append(req.Grants, broker.Asked{
			ID: broker.NewGrantID(0), Audience: "orders", Scopes: broker.Scopes{"orders:read"}, Binding: broker.BindCertificate,
			Thumbprint: "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0", Decision: broker.NewDecisionID(), Life: broker.MaxTokenLife,
		})
	}
	return req
}
