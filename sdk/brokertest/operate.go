package brokertest

import (
	"context"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
)

// The words of an operator who is a test.
const (
	actor  = "brokertest"
	reason = "the test wants it"
)

// Revoke ends a task with everything below it, or one grant, as an operator does.
func (b *Broker) Revoke(taskOrGrant string) {
	b.tb.Helper()
	r := broker.Revocation{Actor: actor, Reason: reason}
	var err error
	if strings.HasPrefix(taskOrGrant, "gnt_") {
		r.Grant, err = broker.ParseGrantID(taskOrGrant)
	} else {
		r.Task, err = broker.ParseTaskID(taskOrGrant)
	}
	if err != nil {
		b.tb.Fatalf("brokertest: %q is not the ID of a task or grant, as Task.ID or Token.GrantID", taskOrGrant)
	}
	b.operate(func(ctx context.Context) error {
		_, err := b.server.Broker().Revoke(ctx, r)
		return err
	})
}

// Quarantine kills the tokens of a workload and has it denied everything, until lift is called.
func (b *Broker) Quarantine(workload string) (lift func()) {
	b.tb.Helper()
	id, err := b.id(workload)
	b.must(err)
	selector := broker.Selector{Subject: id.String()}
	var lock broker.LockID
	b.operate(func(ctx context.Context) error {
		lock, err = b.server.Broker().Lock(ctx, broker.Lock{
			Selector: selector, Actor: actor, Reason: reason, Expires: b.Now().Add(broker.MaxLock - time.Minute),
		})
		if err == nil {
			_, err = b.server.Broker().Revoke(ctx, broker.Revocation{Selector: selector, Actor: actor, Reason: reason})
		}
		return err
	})
	return func() {
		b.tb.Helper()
		b.operate(func(ctx context.Context) error {
			return b.server.Broker().Lift(ctx, broker.Lifting{Lock: lock, Actor: actor, Reason: reason})
		})
	}
}

// RotateKeys makes the next signing key the active one; the tokens that are out stay good. The key
// after that must have been published for 10 minutes, so Advance in between.
func (b *Broker) RotateKeys() {
	b.tb.Helper()
	b.must(b.server.Keys().Rotate())
}

// operate does something, and returns when every verifier knows.
func (b *Broker) operate(f func(context.Context) error) {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	b.must(f(ctx))
	b.must(b.settle(ctx))
}
