package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redis"
)

// selected is what a revocation by a selector takes.
type selected struct {
	grants  int
	answer  time.Duration
	entries int
	refused durations // after the answer
}

func (s selected) String() string {
	return fmt.Sprintf("An operator revokes %d live grants by a selector: %d entry in the feed, answered after %s ms. A connected verifier refuses %d of their tokens %s ms after the answer at p50, %s ms at p99.",
		s.grants, s.entries, milli(s.answer), len(s.refused), milli(s.refused.at(50)), milli(s.refused.at(99)))
}

// revoke begins tasks with so many grants through the store itself, and has an operator revoke what the
// workload has.
func (p *place) revoke(ctx context.Context, grants int) (s selected, err error) {
	store, err := redis.New(ctx, redis.Config{URL: p.url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return s, err
	}
	defer store.Close()
	h := &heart{place: p, lease: broker.MaxLease, all: make([]broker.TaskID, max(1, grants/grantsPerTask))}
	if err := h.begin(ctx, store, grantsPerTask); err != nil {
		return s, err
	}
	s.grants = len(h.all) * grantsPerTask
	w, err := p.watch(ctx, min(treeSamples, len(h.all)), func(i, n int) broker.TaskID { return h.all[i*len(h.all)/n] })
	if err != nil {
		return s, err
	}
	defer w.close()
	body, err := json.Marshal(wire.RevocationRequest{
		Selector: &wire.Selector{Workload: []string{name("report").String()}, Audience: []string{"orders"}}, Reason: "to see how long it takes",
	})
	if err != nil {
		return s, err
	}
	operator := &caller{p.at.Operator, &http.Client{Transport: &http.Transport{TLSClientConfig: p.operator.ClientTLS()}, Timeout: 10 * time.Second}}
	defer operator.close()
	var done wire.Revocation
	start := time.Now()
	if err := operator.post(ctx, wire.PathRevocations, string(body), http.StatusOK, &done); err != nil {
		return s, err
	}
	answered := time.Now()
	s.answer, s.entries = answered.Sub(start), done.Entries
	s.refused, err = w.refused(ctx, answered)
	return s, err
}
