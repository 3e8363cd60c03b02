package redis

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

// call is one script to be run in one shard.
type call struct {
	script *script
	shard  int
	echo   string   // the second argument; the answer must begin with it
	keys   []string // after the shard's
	args   []any    // after the epoch and the echo
	epoch  uint64   // the data set that it is for; 0 for the one that is known when it is sent
}

// command is a call as the client sends it: once. Whether to repeat it is not for the client to decide.
type command struct{ *redis.Cmd }

// NoRetry keeps a cluster's client from sending it again.
func (command) NoRetry() bool { return true }

func (s *Store) command(ctx context.Context, c call) command {
	keys := c.script.keys[c.shard]
	args := make([]any, 0, 5+len(keys)+len(c.keys)+len(c.args))
	args = append(args, "evalsha", c.script.sum, len(keys)+len(c.keys))
	args = append(args, keys...)
	for _, key := range c.keys {
		args = append(args, key)
	}
	args = append(args, c.epoch, c.echo)
	cmd := redis.NewCmd(ctx, append(args, c.args...)...)
	cmd.SetFirstKeyPos(3)
	return command{cmd}
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
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	commands := make([]command, len(calls))
	todo := make([]int, len(calls))
	for i := range todo {
		todo[i] = i
	}
	calls, epoch := slices.Clone(calls), s.knownEpoch()
	for i := range calls {
		calls[i].epoch = cmp.Or(calls[i].epoch, epoch)
	}
	s.pipeline(ctx, calls, todo, commands)
	if missing := unknown(commands); len(missing) > 0 && s.load(ctx, calls, missing) == nil {
		s.pipeline(ctx, calls, missing, commands)
	}
	for i, c := range calls {
		replies[i] = s.answer(c, commands[i])
	}
	return replies
}

// pipeline sends the calls with the given indexes, and puts their commands there.
func (s *Store) pipeline(ctx context.Context, calls []call, indexes []int, commands []command) {
	for _, i := range indexes {
		commands[i] = s.command(ctx, calls[i])
	}
	if len(indexes) == 1 {
		_ = s.client.Process(ctx, commands[indexes[0]]) // its error is in the command
		return
	}
	p := s.client.Pipeline()
	for _, i := range indexes {
		_ = p.Process(ctx, commands[i])
	}
	_, _ = p.Exec(ctx) // each command has its own error
}

// unknown returns which of the commands named a script that the server does not have, as after its
// restart or a failover. Nothing else is ever sent twice.
func unknown(commands []command) []int {
	var missing []int
	for i, c := range commands {
		if redis.HasErrorPrefix(c.Err(), "NOSCRIPT") {
			missing = append(missing, i)
		}
	}
	return missing
}

// load gives all servers the scripts of the calls.
func (s *Store) load(ctx context.Context, calls []call, indexes []int) error {
	loaded := map[*script]bool{}
	for _, i := range indexes {
		sc := calls[i].script
		if loaded[sc] {
			continue
		}
		loaded[sc] = true
		if err := s.eachPrimary(ctx, func(ctx context.Context, node *redis.Client) error {
			return node.ScriptLoad(ctx, sc.source).Err()
		}); err != nil {
			return err
		}
	}
	return nil
}
