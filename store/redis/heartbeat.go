package redis

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/errandhq/errand/broker"
)

// maxBeats bounds the heartbeats in one run of the script, for which all others must wait.
const maxBeats = 100

// Heartbeat extends the lease of each task that has not ended: one script for each shard.
func (s *Store) Heartbeat(ctx context.Context, beats []broker.Beat) ([]broker.Pulse, error) {
	pulses := make([]broker.Pulse, len(beats))
	byShard := map[int][]int{}
	for i, beat := range beats {
		pulses[i].Err = broker.ErrNotFound
		if _, ok := bareTask(beat.Task); ok && s.has(beat.Task.Shard()) {
			shard := beat.Task.Shard()
			byShard[shard] = append(byShard[shard], i)
		}
	}
	var calls []call
	var whose [][]int
	for shard, indexes := range byShard {
		for part := range slices.Chunk(indexes, maxBeats) {
			echo, args := heartbeatArgs(beats, part)
			calls = append(calls, call{script: s.scripts.heartbeat, shard: shard, echo: echo, args: args})
			whose = append(whose, part)
		}
	}
	var now time.Time
	for n, r := range s.run(ctx, s.beats, calls...) {
		if r.err == nil && r.status != "ok" {
			r.err = r.refusal()
		}
		at := r.moment()
		now = later(now, at)
		todo := whose[n]
		r.each(func(item *reply) {
			if len(todo) == 0 {
				item.fail("it has too many pulses")
				return
			}
			pulse := &pulses[todo[0]]
			pulse.Now = at
			if id := item.text(); r.taskID(id) != beats[todo[0]].Task {
				item.fail("a pulse of another task")
			}
			if item.left > 0 {
				task := item.task(at)
				if pulse.Err = s.spoilt(item); pulse.Err == nil {
					pulse.Task = task
				}
			}
			todo = todo[1:]
		})
		if len(todo) > 0 {
			r.fail("it has too few pulses")
		}
		if r.err != nil {
			return nil, r.err
		}
	}
	for i := range pulses {
		if pulses[i].Now.IsZero() { // of a shard that is not there
			pulses[i].Now = now
		}
	}
	return pulses, nil
}

// beatWords say how much there is of each beat in a run, which is as little as all of them need.
var beatWords = []struct {
	word string
	args int
	need func(broker.Beat) bool
}{
	{"adoptions", 7, func(b broker.Beat) bool { return b.Adopt }},
	{"moves", 6, func(b broker.Beat) bool { return b.Attach || b.Lost }},
	{"streams", 5, func(b broker.Beat) bool { return b.Stream != "" }},
	{"notes", 4, func(b broker.Beat) bool { return b.Note != "" }},
	{"holders", 3, func(b broker.Beat) bool { return b.Holder != 0 }},
	{"heartbeat", 2, func(broker.Beat) bool { return true }},
}

func heartbeatArgs(beats []broker.Beat, part []int) (echo string, args []any) {
	each := 0
	for _, w := range beatWords {
		if slices.ContainsFunc(part, func(i int) bool { return w.need(beats[i]) }) {
			echo, each = w.word, w.args
			break
		}
	}
	args = make([]any, 0, each*len(part))
	for _, i := range part {
		beat := beats[i]
		id, _ := bareTask(beat.Task)
		holder, move, first := "", "", ""
		if beat.Holder != 0 {
			holder = strconv.Itoa(beat.Holder)
		}
		switch {
		case beat.Lost:
			move = strconv.FormatInt(broker.PresenceGrace.Milliseconds(), 10)
		case beat.Attach:
			move = "attach"
		}
		if beat.Adopt {
			first = strconv.FormatInt(broker.AttachTime.Milliseconds(), 10)
		}
		all := [...]any{id, beat.Workload.String(), holder, beat.Note, string(beat.Stream), move, first}
		args = append(args, all[:each]...)
	}
	return echo, args
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
