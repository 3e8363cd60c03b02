package demo

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

const (
	// crashLease is the shortest lease that there is.
	crashLease = broker.MinLease
	// announced is how soon an end that comes by itself is announced (P5).
	announced = time.Second
	// noticed is how soon a task with presence ends whose client is lost (P6).
	noticed = 2 * time.Second
	// pollEvery is the pause between two requests where some seconds are waited for.
	pollEvery = 20 * time.Millisecond
)

// crash kills a process of the workload, so that nobody ends its task. What is waited for is its lease, or, when
// there is no time for that, the loss of its connection.
func (t *tour) crash(ctx context.Context) (Step, error) {
	o := workerOrders{BrokerURL: t.local.BrokerURL, BrokerID: t.local.BrokerID, Socket: t.local.Sockets[reportName], Lease: crashLease}
	bound, detail := crashLease+announced+Bound, fmt.Sprintf("lease %d s", int(crashLease.Seconds()))
	more := "nobody said goodbye: the lease ran out, and the broker told the resource server"
	if t.Fast {
		o.Lease, o.Presence = broker.DefaultLease, true
		bound, detail = noticed+Bound, "with presence"
		more = "nobody said goodbye: the broker saw the connection go, and did not wait for the lease of 30 s"
	}
	w, err := startWorker(ctx, t.Worker, o)
	if err != nil {
		return Step{}, err
	}
	defer w.kill()
	if err := t.attached(ctx, w.Task, o.Presence); err != nil {
		return Step{}, err
	}
	if err := t.accept(ctx, w.Header); err != nil {
		return Step{}, fmt.Errorf("while its process lived: %w", err)
	}
	killed := time.Now()
	w.kill()
	answer, err := t.untilRefused(ctx, w.Header, killed, bound, pollEvery)
	if err != nil {
		return Step{}, err
	}
	return Step{
		OK: answer.revoked() && answer.waited <= bound, Took: answer.waited,
		Detail: fmt.Sprintf("SIGKILL of report's process, %s: its token %d %s", detail, answer.status, answer.reason),
		More:   []string{more, "the time is from the kill until the refusal"},
	}, nil
}

// attached waits until the broker has the stream of a task with presence.
func (t *tour) attached(ctx context.Context, task string, presence bool) error {
	wanted, err := broker.ParseTaskID(task)
	for err == nil && presence {
		var got broker.Task
		got, err = t.local.Server.Broker().Task(ctx, broker.Workload{ID: id(reportName)}, wanted)
		if err == nil && got.State != broker.Active {
			err = fmt.Errorf("it is %s, by %s", got.State, got.Cause)
		}
		if err != nil || got.Stream != "" {
			break
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return fmt.Errorf("the task of the process: %w", err)
	}
	return nil
}

// cascade ends a task, and with it everything below, in one entry of the feed.
func (t *tour) cascade(ctx context.Context) (Step, error) {
	root, err := t.begin(ctx)
	if err != nil {
		return Step{}, err
	}
	defer root.Close()
	var tokens []*sdk.Token
	at := root
	for _, name := range []string{"page", "row"} {
		if at, err = at.Child(ctx, sdk.TaskSpec{Name: name}); err != nil {
			return Step{}, err
		}
		token, err := at.Token(ctx, sdk.TokenRequest{Audience: OrdersName})
		if err != nil {
			return Step{}, err
		}
		if err := t.accept(ctx, token.Header()); err != nil {
			return Step{}, fmt.Errorf("before the end: %w", err)
		}
		tokens = append(tokens, token)
	}
	before, err := numberIn(tokens[len(tokens)-1])
	if err != nil {
		return Step{}, err
	}
	receipt, err := root.Complete(ctx)
	ended := time.Now()
	if err != nil {
		return Step{}, err
	}
	ok, last := true, refused{}
	for _, token := range tokens {
		if last, err = t.untilRefused(ctx, token.Header(), ended, Bound, 0); err != nil {
			return Step{}, err
		}
		ok = ok && last.revoked() && last.waited <= Bound
	}
	entries := numberOf(receipt.Feed) - before
	return Step{
		OK: ok && entries == 1 && receipt.SubTasks == 2 && receipt.Grants == 2, Took: last.waited,
		Detail: fmt.Sprintf("a task ends with the %d below it: their tokens %d %s", receipt.SubTasks, last.status, last.reason),
		More:   []string{fmt.Sprintf("%s in the feed, as for 100 000 of them: a token names every task above its own", entryCount(entries))},
	}, nil
}

func entryCount(n int64) string {
	if n == 1 {
		return "one entry"
	}
	return fmt.Sprint(n, " entries")
}

// numberIn is the number that the feed had reached when a token was issued.
func numberIn(token *sdk.Token) (int64, error) {
	parts := strings.Split(token.Secret(), ".")
	if len(parts) != 3 {
		return 0, errors.New("the token is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, err
	}
	var claims wire.Claims
	err = json.Unmarshal(payload, &claims)
	return int64(claims.Epoch[1]), err
}

// numberOf is the number in a position: there is one shard here, so it has one.
func numberOf(position string) int64 {
	_, number, _ := strings.Cut(position, ".")
	n, _ := strconv.ParseInt(number, 10, 64) // 0 is not one more than any
	return n
}

// incident locks the workload, as somebody on call would who does not know yet what is wrong with it.
func (t *tour) incident(ctx context.Context) (Step, error) {
	var tokens []*sdk.Token
	var running *sdk.Task
	for range 2 {
		task, token, err := t.accepted(ctx)
		if err != nil {
			return Step{}, err
		}
		defer task.Close()
		running, tokens = task, append(tokens, token)
	}
	lock, err := t.lock(ctx)
	locked := time.Now()
	if err != nil {
		return Step{}, err
	}
	ok, last := true, refused{}
	for _, token := range tokens {
		if last, err = t.untilRefused(ctx, token.Header(), locked, Bound, 0); err != nil {
			return Step{}, err
		}
		ok = ok && last.revoked() && last.waited <= Bound
	}
	_, denied := t.begin(ctx)
	_, further := running.Token(ctx, sdk.TokenRequest{Audience: OrdersName, Fresh: true})
	if !errors.Is(denied, sdk.ErrQuarantined) || !errors.Is(further, sdk.ErrQuarantined) {
		return Step{}, fmt.Errorf("a new task: %v; a new token in one that runs: %v", denied, further)
	}
	return Step{
		OK: ok, Took: last.waited,
		Detail: fmt.Sprintf("an operator locks report: its %d live tokens %d %s", len(tokens), last.status, last.reason),
		More:   []string{"new tasks and tokens DENIED: quarantined until the lock is lifted, or is over", string(lock)},
	}, nil
}

// lock denies the workload whatever it asks for, and then kills what it has.
func (t *tour) lock(ctx context.Context) (broker.LockID, error) {
	domain := t.local.Server.Broker()
	selector := broker.Selector{Subject: id(reportName).String()}
	who, why := id(OperatorName).String(), "it sends more than it should"
	lock, err := domain.Lock(ctx, broker.Lock{Selector: selector, Actor: who, Reason: why, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		return "", err
	}
	_, err = domain.Revoke(ctx, broker.Revocation{Selector: selector, Actor: who, Reason: why})
	return lock, err
}
