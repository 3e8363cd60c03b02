package redis

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/errandhq/errand/broker"
)

// openTries is how often a data set is looked at before open gives up. Three are enough unless others
// open it, too: then there is a pause in between.
const (
	openTries = 20
	openPause = 50 * time.Millisecond
)

// dataSet is what a shard says of itself.
type dataSet struct {
	epoch   uint64 // 0 when the shard is empty, or has lost its data
	shards  int
	opening bool // the first shard's: not all shards have the epoch yet

	deployment string
	now, last  time.Time // the server's, and the latest that is written down
}

// open finds out the epoch of the data set and adopts it, or begins a new one when there is none, or
// when a shard has lost the one that the others have, or all have an older one than this store knows:
// then all tokens of the old one must die. The first shard decides; the others are made to follow. Any
// number of replicas may do it at once, and one that stops half way is completed by the next.
func (s *Store) open(ctx context.Context) error {
	for try := range openTries {
		sets, err := s.dataSets(ctx)
		if err != nil {
			return err
		}
		first, newest, whole := sets[0], s.knownEpoch(), true
		for _, d := range sets {
			if err := s.checkDataSet(d); err != nil {
				return err
			}
			newest = max(newest, d.epoch)
			whole = whole && d.epoch == first.epoch && d.epoch != 0
		}
		whole = whole && first.epoch == newest
		switch {
		case whole && !first.opening:
			s.adopt(first.epoch)
			return nil
		case first.epoch != 0 && first.opening && first.epoch == newest:
			err = s.complete(ctx, first.epoch)
		default:
			if newest != 0 {
				s.logger.Error("a part of the data in redis is lost; a new epoch begins, and all older tokens are dead", "epoch", newest)
			}
			err = s.renew(ctx, first.epoch, newest)
		}
		if err != nil {
			return err
		}
		if try < 3 {
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", broker.ErrUnavailable, ctx.Err())
		case <-time.After(openPause):
		}
	}
	return fmt.Errorf("%w: redis keeps losing its data; look at its log", broker.ErrUnavailable)
}

// checkDataSet wants the data set of a shard to be this store's.
func (s *Store) checkDataSet(d dataSet) error {
	switch {
	case d.epoch == 0:
		return nil
	case d.deployment != s.deployment:
		return refusal("the data set is of the deployment %q, and this is %q; set Config.Deployment if this broker belongs there, or use another Config.Prefix or database",
			d.deployment, s.deployment)
	case d.shards != s.shards:
		return refusal("the data set has %d shards, and Config.Shards is %d; set it to that, or use another Config.Prefix", d.shards, s.shards)
	case d.last.Sub(d.now) > broker.MaxSkew && s.knownEpoch() == 0:
		return refusal("the data set was used at %s, and the server's clock says %s; set the clock if it is behind; if it was ahead before and is right now, "+
			"wait until then, since the store's time stands still, or begin with another Config.Prefix",
			d.last.Format(time.RFC3339), d.now.Format(time.RFC3339))
	}
	return nil
}

func (s *Store) dataSets(ctx context.Context) ([]dataSet, error) {
	var calls []call
	for shard := range s.shards {
		calls = append(calls, s.opener(shard, "read"))
	}
	sets := make([]dataSet, 0, s.shards)
	for _, r := range s.send(ctx, calls) {
		d := dataSet{}
		epoch, shards := r.text(), r.text()
		d.opening, d.deployment = r.text() == "1", r.text()
		d.now, d.last = r.moment(), r.moment()
		if r.err == nil && epoch != "" {
			var errE, errS error
			d.epoch, errE = strconv.ParseUint(epoch, 10, 64)
			d.shards, errS = strconv.Atoi(shards)
			if errE != nil || errS != nil || d.epoch == 0 {
				r.fail(fmt.Sprintf("epoch %q of %q shards", epoch, shards))
			}
		}
		if r.err != nil {
			return nil, r.err
		}
		sets = append(sets, d)
	}
	return sets, nil
}

func (s *Store) opener(shard int, args ...any) call {
	return call{script: s.scripts.open, shard: shard, echo: "open", args: args}
}

// renew begins an epoch in the first shard, unless somebody else has.
func (s *Store) renew(ctx context.Context, was, above uint64) error {
	text := ""
	if was != 0 {
		text = strconv.FormatUint(was, 10)
	}
	return s.send(ctx, []call{s.opener(0, "renew", text, above, s.shards, s.deployment)})[0].err
}

// complete makes all shards follow the first.
func (s *Store) complete(ctx context.Context, epoch uint64) error {
	var calls []call
	for shard := 1; shard < s.shards; shard++ {
		calls = append(calls, s.opener(shard, "join", epoch, s.shards, s.deployment))
	}
	for _, r := range s.send(ctx, calls) {
		if r.err != nil {
			return r.err
		}
	}
	return s.send(ctx, []call{s.opener(0, "done", epoch)})[0].err
}
