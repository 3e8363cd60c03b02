package redis

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"github.com/tinylib/msgp/msgp"

	"github.com/errandhq/errand/broker"
)

// call is one script to be run in one shard.
type call struct {
	script *script
	shard  int
	echo   string   // what the answer must repeat
	keys   []string // after the shard's
	args   []any    // after the epoch and the echo
	epoch  uint64   // the data set that it is for; 0 for the one that is known when it is sent
}

// command runs a script as the client sends it: once. Whether to repeat it is not for the client to
// decide.
type command struct {
	*redis.Cmd
	calls []int // the indexes of those that the run makes
}

// NoRetry keeps a cluster's client from sending it again.
func (command) NoRetry() bool { return true }

// commands returns what makes the calls with the given indexes. Calls of a script that makes many, in
// the same shard and data set, are one command.
func commands(ctx context.Context, calls []call, indexes []int) []command {
	var list []command
next:
	for _, i := range indexes {
		c := &calls[i]
		for n := range list {
			first := &calls[list[n].calls[0]]
			if c.script.many && c.script == first.script && c.shard == first.shard && c.epoch == first.epoch {
				list[n].calls = append(list[n].calls, i)
				continue next
			}
		}
		list = append(list, command{calls: []int{i}})
	}
	for n := range list {
		list[n].Cmd = run(ctx, calls, list[n].calls)
	}
	return list
}

// run is the command for calls that one run makes.
func run(ctx context.Context, calls []call, indexes []int) *redis.Cmd {
	first := &calls[indexes[0]]
	shared := first.script.keys[first.shard]
	keys := len(shared)
	for _, i := range indexes {
		keys += len(calls[i].keys)
	}
	args := make([]any, 0, 5+keys+len(first.args))
	args = append(args, "evalsha", first.script.sum, keys)
	args = append(args, shared...)
	for _, i := range indexes {
		for _, key := range calls[i].keys {
			args = append(args, key)
		}
	}
	args = append(args, first.epoch)
	if first.script.many {
		args = append(args, packCalls(calls, indexes))
	} else {
		args = append(append(args, first.echo), first.args...)
	}
	cmd := redis.NewCmd(ctx, args...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

// packCalls is what scripts/lib/calls.lua reads: one MessagePack array of how many keys each call has, and one of the
// arguments of each. Redis takes one long argument for less than many short ones.
func packCalls(calls []call, indexes []int) []byte {
	packed := msgp.AppendArrayHeader(nil, uint32(len(indexes)))
	for _, i := range indexes {
		packed = msgp.AppendInt(packed, len(calls[i].keys))
	}
	packed = msgp.AppendArrayHeader(packed, uint32(len(indexes)))
	for _, i := range indexes {
		packed = msgp.AppendArrayHeader(packed, uint32(len(calls[i].args))+1)
		packed = msgp.AppendString(packed, calls[i].echo)
		for _, arg := range calls[i].args {
			switch arg := arg.(type) {
			case string:
				packed = msgp.AppendString(packed, arg)
			case int:
				packed = msgp.AppendInt(packed, arg)
			case int64:
				packed = msgp.AppendInt64(packed, arg)
			case uint64:
				packed = msgp.AppendUint64(packed, arg)
			default:
				panic(fmt.Sprintf("store/redis: an argument of type %T", arg))
			}
		}
	}
	return packed
}

// send makes the calls in one round trip and returns an answer for each. A failure of one is in its
// answer.
func (s *Store) send(ctx context.Context, calls []call) []reply {
	replies := make([]reply, len(calls))
	if err := ctx.Err(); err != nil {
		for i := range replies {
			replies[i].err = fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
		}
		return replies
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.send)
	defer cancel()
	todo := make([]int, len(calls))
	for i := range todo {
		todo[i] = i
	}
	calls, epoch := slices.Clone(calls), s.knownEpoch()
	for i := range calls {
		calls[i].epoch = cmp.Or(calls[i].epoch, epoch)
	}
	sent := s.pipeline(ctx, calls, todo)
	if missing := unknown(sent); len(missing) > 0 && s.load(ctx, calls, missing) {
		sent = append(sent, s.pipeline(ctx, calls, missing)...) // one that still has no script does nothing
	}
	for _, cmd := range sent {
		s.answer(calls, cmd, replies)
	}
	s.nameMistyped(ctx, calls, replies)
	return replies
}

// pipeline sends the calls with the given indexes.
func (s *Store) pipeline(ctx context.Context, calls []call, indexes []int) []command {
	list := commands(ctx, calls, indexes)
	if len(list) == 1 {
		_ = s.client.Process(ctx, list[0]) // its error is in the command
		return list
	}
	p := s.client.Pipeline()
	for _, cmd := range list {
		_ = p.Process(ctx, cmd)
	}
	_, _ = p.Exec(ctx) // each command has its own error
	return list
}

// unknown returns the calls whose script the server does not have, as after its restart or a failover.
// Nothing else is ever sent twice.
func unknown(sent []command) []int {
	var missing []int
	for _, cmd := range sent {
		if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
			missing = append(missing, cmd.calls...)
		}
	}
	return missing
}

// load gives all servers the scripts of the calls, and reports whether one has taken them. Another one may hang, and it may not
// be asked for any of them.
func (s *Store) load(ctx context.Context, calls []call, missing []int) bool {
	var taken atomic.Bool
	loaded := map[*script]bool{}
	for _, i := range missing {
		sc := calls[i].script
		if loaded[sc] {
			continue
		}
		loaded[sc] = true
		_ = s.eachPrimary(ctx, func(ctx context.Context, node *redis.Client) error {
			err := node.ScriptLoad(ctx, sc.source).Err()
			if err == nil {
				taken.Store(true)
			}
			return err
		})
	}
	return taken.Load()
}
