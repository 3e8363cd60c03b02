package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

const Far = far

// Patient is the Config of a store for tests of what calls do, and not of how long they may take. On a
// busy machine a test's own server may get no processor for as long as Redis may usually be silent.
func (c Config) Patient() Config {
	c.limits = limits{dial: 20 * time.Second, pool: 20 * time.Second, call: 20 * time.Second, send: 30 * time.Second, rounds: usual.rounds}
	return c
}

// Rounds is the Config of a store whose lists make so many rounds. It is patient.
func (c Config) Rounds(n int) Config {
	c = c.Patient()
	c.limits.rounds = n
	return c
}

// Waiting is how many calls that issue wait for another one to come back.
func (s *Store) Waiting() (n int) {
	for _, l := range s.issues {
		l.mu.Lock()
		n += len(l.waiting)
		l.mu.Unlock()
	}
	return n
}

// says answers each command with the same text, three times at most: what goes on asking then hears of nothing.
type says struct {
	text string
	left int
}

func (a *says) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, cmd redis.Cmder) error {
		c, ok := cmd.(command)
		if a.left--; !ok || a.left < 0 {
			cmd.SetErr(redis.ErrClosed)
			return redis.ErrClosed
		}
		c.SetVal(a.text)
		return nil
	}
}

func (a *says) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a *says) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// fuzzed are the scripts of the stores that hear one text.
var fuzzed = sync.OnceValue(func() scripts { return newScripts(DefaultPrefix, 1) })

// hearing is a store of one shard to which a server says nothing but a text.
func hearing(text string) *Store {
	s := &Store{
		client: redis.NewClient(&redis.Options{}), limits: Config{}.Patient().limits, logger: slog.New(slog.DiscardHandler), prefix: DefaultPrefix,
		scripts: fuzzed(), shards: 1, rounds: make([]atomic.Uint64, 1), feeds: []string{keyOf(DefaultPrefix, 0, "feed")}, grantPrefixes: []string{keyOf(DefaultPrefix, 0, "g:")},
	}
	for _, l := range []*lanes{&s.issues, &s.ends, &s.beats, &s.lookups} {
		*l = s.newLanes(1)
	}
	s.adopt(7)
	s.client.(*redis.Client).AddHook(&says{text, 3})
	return s
}

// AnyID is the ID, as Redis has it, of the task and of the grant that ReadAll asks about.
const AnyID = "abcdefghijklmnopqrstuvwxyz"

// ReadAll has each kind of call hear a text, and returns which of them believe it. It returns an error when one makes
// of it neither a value nor an error of the contract.
func ReadAll(ctx context.Context, text string) (believed []string, err error) {
	r := reply{}
	task, grant := r.taskID(AnyID), r.grantID(AnyID)
	asking := broker.GrantRequest{Task: task, Grants: []broker.Asked{{ID: grant}}}
	beginning := asking
	beginning.Begin = &broker.Beginning{}
	end := func(s *Store, e broker.Ending) error {
		replies, err := s.End(ctx, []broker.Ending{e})
		if err == nil {
			err = replies[0].Err
		}
		return err
	}
	for what, call := range map[string]func(*Store) error{
		"Grant that begins":      func(s *Store) error { _, err := s.Grant(ctx, beginning); return err },
		"Grant that issues":      func(s *Store) error { _, err := s.Grant(ctx, asking); return err },
		"Grant that is replayed": func(s *Store) error { _, err := s.Grant(ctx, beginning); return err },
		"Heartbeat": func(s *Store) error {
			pulses, err := s.Heartbeat(ctx, []broker.Beat{{Task: task}})
			if err == nil {
				err = pulses[0].Err
			}
			return err
		},
		"End":                 func(s *Store) error { return end(s, broker.Ending{Kind: broker.TargetTask, Task: task}) },
		"End of a grant":      func(s *Store) error { return end(s, broker.Ending{Kind: broker.TargetGrant, Grant: grant}) },
		"End of all":          func(s *Store) error { return end(s, broker.Ending{Kind: broker.TargetAll}) },
		"Lookup":              func(s *Store) error { _, err := s.Lookup(ctx, broker.Ref{Task: task}); return err },
		"Lookup of a grant":   func(s *Store) error { _, err := s.Lookup(ctx, broker.Ref{Grant: grant}); return err },
		"List":                func(s *Store) error { _, err := s.List(ctx, broker.Query{}); return err },
		"List of what is due": func(s *Store) error { _, err := s.List(ctx, broker.Query{Due: true}); return err },
		"List of grants":      func(s *Store) error { _, err := s.List(ctx, broker.Query{Grants: true}); return err },
		"Watch": func(s *Store) error {
			_, err := (&reader{store: s, known: make([]*broker.Control, 1)}).read(ctx)
			return err
		},
		"Read": func(s *Store) error { _, _, _, err := s.Record("keys").Read(ctx); return err },
		"Post": func(s *Store) error {
			return s.Post(ctx, broker.BoardNote{Kind: "kind", ID: "id", Life: time.Second})
		},
		"Notes": func(s *Store) error { _, err := s.Notes(ctx, "kind"); return err },
		"open":  func(s *Store) error { _, err := s.dataSets(ctx); return err },
		"probe": func(s *Store) error { return s.checkPermissions(ctx) },
	} {
		s := hearing(text)
		err := call(s)
		_ = s.client.Close()
		switch {
		case err == nil:
			believed = append(believed, what)
		case !isOfContract(err) && !errors.As(err, new(refused)):
			return believed, fmt.Errorf("%s: %w", what, err)
		}
	}
	return believed, nil
}

func isOfContract(err error) bool {
	var invalid *broker.Invalid
	var ended *broker.Ended
	var behind *broker.Behind
	var quota *broker.QuotaExceeded
	return errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnconfirmed) || errors.Is(err, broker.ErrMismatch) ||
		errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUsed) || errors.Is(err, broker.ErrAdopted) ||
		errors.Is(err, broker.ErrTooShort) || errors.Is(err, broker.ErrEpoch) || errors.As(err, &invalid) || errors.As(err, &ended) || errors.As(err, &behind) || errors.As(err, &quota)
}
