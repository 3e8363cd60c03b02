package redis

import (
	"context"
	"crypto/sha1"
	_ "embed" // the scripts
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

//go:embed scripts/lib.lua
var library string

//go:embed scripts/open.lua
var openText string

//go:embed scripts/grant.lua
var grantText string

//go:embed scripts/heartbeat.lua
var heartbeatText string

//go:embed scripts/end.lua
var endText string

//go:embed scripts/control.lua
var controlText string

//go:embed scripts/lookup.lua
var lookupText string

//go:embed scripts/list.lua
var listText string

//go:embed scripts/watch.lua
var watchText string

// script is one program that Redis runs, known there by its SHA-1.
type script struct {
	name   string
	source string
	sum    string
	writes bool // a failure may leave the call done
}

// newScript puts the library between a script's first line, which has its flags, and the rest.
func newScript(name, text string, writes bool) *script {
	flags, body, _ := strings.Cut(text, "\n")
	source := flags + "\n" + library + body
	sum := sha1.Sum([]byte(source))
	return &script{name: name, source: source, sum: hex.EncodeToString(sum[:]), writes: writes}
}

// scripts are all of them.
type scripts struct {
	open, grant, heartbeat, end, control, lookup, list, watch *script
}

func newScripts() scripts {
	return scripts{
		open:      newScript("open", openText, true),
		grant:     newScript("grant", grantText, true),
		heartbeat: newScript("heartbeat", heartbeatText, true),
		end:       newScript("end", endText, true),
		control:   newScript("control", controlText, true),
		lookup:    newScript("lookup", lookupText, false),
		list:      newScript("list", listText, false),
		watch:     newScript("watch", watchText, false),
	}
}

// keyNames are a shard's keys after its tag, in the order in which lib.lua takes them.
var keyNames = [...]string{
	"meta", "tasks", "grants", "idempotent", "ids", "due", "alarms", "live", "feed", "denials", "locks",
}

// keysOf names the keys of a shard. They share one hash tag, and so one slot.
func keysOf(prefix string, shard int) []string {
	keys := make([]string, len(keyNames))
	for i, name := range keyNames {
		keys[i] = fmt.Sprintf("%s{p%02d}:%s", prefix, shard, name)
	}
	return keys
}

// feedKey is where lib.lua finds the feed.
const feedKey = 8

// call is one script to be run in one shard.
type call struct {
	script *script
	shard  int
	echo   string // the answer must begin with it
	args   []any  // after the epoch
}

// maxPipeline bounds what is sent at once.
const maxPipeline = 100

// run runs calls, in one round trip for each maxPipeline of them, and returns an answer for each. A
// failure of one is in its answer.
func (s *Store) run(ctx context.Context, calls ...call) []reply {
	replies := make([]reply, 0, len(calls))
	for len(calls) > 0 {
		n := min(len(calls), maxPipeline)
		replies = append(replies, s.send(ctx, calls[:n])...)
		calls = calls[n:]
	}
	return replies
}

func (s *Store) send(ctx context.Context, calls []call) []reply {
	epoch := s.epochText()
	replies := make([]reply, len(calls))
	if err := ctx.Err(); err != nil {
		for i := range replies {
			replies[i].err = fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
		}
		return replies
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	todo := make([]int, len(calls))
	for i := range todo {
		todo[i] = i
	}
	commands := s.pipeline(ctx, epoch, calls, todo)
	if missing := unknown(commands, todo); len(missing) > 0 && s.load(ctx, calls, missing) == nil {
		for i, c := range s.pipeline(ctx, epoch, calls, missing) {
			commands[missing[i]] = c
		}
	}
	for i, c := range calls {
		replies[i] = s.answer(c, commands[i])
	}
	return replies
}

// pipeline sends the calls with the given indexes.
func (s *Store) pipeline(ctx context.Context, epoch string, calls []call, indexes []int) []*redis.Cmd {
	commands := make([]*redis.Cmd, len(indexes))
	evaluate := func(p redis.Cmdable, i int) *redis.Cmd {
		c := calls[i]
		return p.EvalSha(ctx, c.script.sum, s.keys[c.shard], append([]any{epoch}, c.args...)...)
	}
	if len(indexes) == 1 {
		commands[0] = evaluate(s.client, indexes[0])
		return commands
	}
	// Each command has its own error.
	_, _ = s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n, i := range indexes {
			commands[n] = evaluate(p, i)
		}
		return nil
	})
	return commands
}

// unknown returns which of the commands named a script that the server does not have, as after its
// restart or a failover. Nothing else is ever sent twice.
func unknown(commands []*redis.Cmd, indexes []int) []int {
	var missing []int
	for n, c := range commands {
		if redis.HasErrorPrefix(c.Err(), "NOSCRIPT") {
			missing = append(missing, indexes[n])
		}
	}
	return missing
}

func (s *Store) load(ctx context.Context, calls []call, indexes []int) error {
	loaded := map[string]bool{}
	for _, i := range indexes {
		sc := calls[i].script
		if loaded[sc.sum] {
			continue
		}
		loaded[sc.sum] = true
		if err := s.client.ScriptLoad(ctx, sc.source).Err(); err != nil {
			return err
		}
	}
	return nil
}
