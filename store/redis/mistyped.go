package redis

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// maxTyped bounds the keys whose types are asked for in one round trip.
const maxTyped = 100

// A kept is what the keys of one name are, and what it means to be without.
type kept struct {
	name, is string
	without  string
}

// keyKinds are all that there is; a name that ends with ":" begins those of many keys.
var keyKinds = []kept{
	{"meta", "hash", "a new epoch begins then, in which all tasks and tokens of before are dead"},
	{"tasks", "hash", "its tasks are dead then, but verifiers are not told; delete meta beside it as well, so that a new epoch begins and all tokens die"},
	{"requests", "hash", "a begin of before that is repeated begins another task then"},
	{"lists", "zset", "tasks are put back into it in time, but tokens of before are in no list; revoke them by task or selector"},
	{"due", "zset", "what is due is put back into it in time"},
	{"alarms", "zset", "the alarms of tasks are put back into it in time"},
	{"usage", "hash", "quotas count from nothing then"},
	{"feed", "stream", "a new epoch begins then, in which all tasks and tokens of before are dead"},
	{"denials", "zset", "what it denied is allowed then, in a new epoch in which all tasks and tokens of before are dead; revoke that again"},
	{"locks", "hash", "what it locked is allowed then, in a new epoch in which all tasks and tokens of before are dead; lock that again"},
	{"g:", "string", "the token is unknown then"},
	{"j:", "string", "the delegation can be used once more then"},
	{"record:", "hash", "what it had is not there then; signing keys are made anew, and tokens of the old ones are no good"},
	{"board:", "hash", "notes of before are not there then"},
}

// kindOf says what a key must be.
func kindOf(key string) (kept, bool) {
	_, name, _ := strings.Cut(key, "}:") // the prefix has no braces
	i := slices.IndexFunc(keyKinds, func(k kept) bool {
		return name == k.name || strings.HasSuffix(k.name, ":") && strings.HasPrefix(name, k.name)
	})
	if i < 0 {
		return kept{}, false
	}
	k := keyKinds[i]
	if k.name == "board:" && strings.HasSuffix(name, ":until") {
		k.is = "zset"
	}
	return k, true
}

func isWrongType(err error) bool { return err != nil && strings.Contains(err.Error(), "WRONGTYPE") }

// nameMistyped says in the errors of a round trip which keys have become something else, for which the server has no
// words. It costs one more round trip, and only then.
func (s *Store) nameMistyped(ctx context.Context, calls []call, replies []reply) {
	var keys []string
	for i := range replies {
		if isWrongType(replies[i].err) {
			keys = append(keys, calls[i].allKeys()...)
		}
	}
	if len(keys) == 0 {
		return
	}
	slices.Sort(keys)
	found := s.mistyped(ctx, slices.Compact(keys))
	for i := range replies {
		if !isWrongType(replies[i].err) {
			continue
		}
		for _, key := range calls[i].allKeys() {
			if what, ok := found[key]; ok {
				replies[i].err = fmt.Errorf("%w; %s", replies[i].err, what)
			}
		}
	}
}

// mistyped returns what to say of those keys that are not what they must be, and names each in the log once.
func (s *Store) mistyped(ctx context.Context, keys []string) map[string]string {
	found, types := map[string]string{}, map[string]*redis.StatusCmd{}
	p := s.client.Pipeline()
	for _, key := range keys[:min(len(keys), maxTyped)] {
		types[key] = p.Type(ctx, key)
	}
	_, _ = p.Exec(ctx) // of which there is no answer nothing is said
	for key, cmd := range types {
		must, ok := kindOf(key)
		if is := cmd.Val(); ok && cmd.Err() == nil && is != must.is && is != "none" {
			found[key] = fmt.Sprintf("the key %s has become a %s and must be a %s: RENAME it away, or DEL it; %s", key, is, must.is, must.without)
			s.unreadable.once(s.logger, key, func() {
				s.logger.Error("a key in redis has become something else; RENAME it away, or DEL it", "key", key, "type", is, "must be", must.is, "without it", must.without)
			})
		}
	}
	return found
}

// allKeys are those that a call declares.
func (c *call) allKeys() []string {
	var keys []string
	for _, key := range c.script.keys[c.shard] {
		keys = append(keys, key.(string))
	}
	return append(keys, c.keys...)
}
