package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

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

// ReadAll reads a text as what each script answers. It returns an error when what is read is neither a value
// nor an error of the contract.
func ReadAll(text string) error {
	s := &Store{shards: 1, logger: slog.New(slog.DiscardHandler)}
	s.adopt(7)
	for _, read := range []func(*reply) error{
		func(r *reply) error { _, err := s.endReply(*r); return err },
		func(r *reply) error { r.record(time.Time{}); return r.err },
		func(r *reply) error { r.control(r.epoch); return r.err },
		func(r *reply) error {
			r.each(func(item *reply) { item.taskFields(r.moment()) })
			return r.err
		},
		func(r *reply) error { return r.refusal() },
	} {
		for _, sc := range []*script{{name: "one", writes: true}, {name: "many", many: true}} {
			c := call{script: sc, echo: "abcdefghijklmnopqrstuvwxyz", epoch: 7}
			cmd := command{redis.NewCmd(context.Background()), []int{0}}
			cmd.SetVal(text)
			replies := make([]reply, 1)
			s.answer([]call{c}, cmd, replies)
			if err := read(&replies[0]); err != nil && !isOfContract(err) {
				return fmt.Errorf("%s: %w", sc.name, err)
			}
		}
	}
	return nil
}

func isOfContract(err error) bool {
	var invalid *broker.Invalid
	var ended *broker.Ended
	var behind *broker.Behind
	var quota *broker.QuotaExceeded
	return errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnconfirmed) || errors.Is(err, broker.ErrMismatch) ||
		errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrUsed) || errors.Is(err, broker.ErrAdopted) ||
		errors.Is(err, broker.ErrTooShort) || errors.As(err, &invalid) || errors.As(err, &ended) || errors.As(err, &behind) || errors.As(err, &quota)
}
