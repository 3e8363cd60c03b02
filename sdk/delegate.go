package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/sdk/wire"
)

// Delegation says who may join a task, and with what at most.
type Delegation struct {
	To      spiffeid.ID // the workload that may; required
	Purpose string      // why, for the audit log; the task's own when empty

	// What it may have at most: some of what the task has. Empty means all of that, though no details.
	Audiences []string
	Scopes    []string
	Details   []json.RawMessage

	For time.Duration // in which it must have joined, in whole seconds; 10 min when zero, at most 24 h, and not longer than the task
}

// MaxHandle is the longest Handle, in bytes.
const MaxHandle = 4096

// Handle is what another workload joins a task with. It is no credential, and may be logged: it is of use to
// nobody but the workload that it names, by that one's own SVID, and once.
type Handle string

const handlePrefix = "hdl_"

// ParseHandle takes a handle that came from elsewhere, as in a message, a header or a file, with space around
// it or not. The error is ErrInvalid for what is none. Whether it is still good, the broker knows.
func ParseHandle(text string) (Handle, error) {
	h := Handle(strings.TrimSpace(text))
	return h, h.check()
}

// check wants hdl_ and two texts of base64url (RFC 4648 §5) with a dot in between.
func (h Handle) check() error {
	if len(h) > MaxHandle {
		return fmt.Errorf("sdk: %w: a handle of %d bytes; it has at most %d", ErrInvalid, len(h), MaxHandle)
	}
	text, ok := strings.CutPrefix(string(h), handlePrefix)
	payload, mac, dot := strings.Cut(text, ".")
	if !ok || !dot || !isBase64URL(payload) || !isBase64URL(mac) {
		return fmt.Errorf("sdk: %w: this is no handle; give what Task.Delegate or errand task delegate has returned, whole: it begins with %s", ErrInvalid, handlePrefix)
	}
	return nil
}

func isBase64URL(text string) bool {
	other := strings.IndexFunc(text, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_')
	})
	return text != "" && other < 0
}

// Delegate lets another workload begin a task below this one (Client.Join), with a part of what this one may
// have. The handle is for whoever is to join, and travels as it likes. What joins is the other workload's to
// look after; its tokens name both workloads, and die with this task, as all below it does. ctx bounds the
// call; a broker that is not available is tried again for 30 s at most. A handle that has got lost is good
// for nothing.
//
// Errors: as of Child; ErrInvalid also for a workload that may not have it.
func (t *Task) Delegate(ctx context.Context, d Delegation) (Handle, error) {
	if d.To.IsZero() {
		return "", fmt.Errorf("sdk: %w: Delegation.To is empty; name the workload that may join", ErrInvalid)
	}
	if _, err := compactDetails("Delegation.Details", d.Details); err != nil {
		return "", err
	}
	body := wire.DelegationRequest{To: d.To.String(), Purpose: d.Purpose, Audiences: d.Audiences, Scopes: d.Scopes, AuthorizationDetails: d.Details}
	if body.Purpose == "" {
		body.Purpose = t.purpose
	}
	var err error
	if body.ExpiresIn, err = seconds("For", d.For); err != nil {
		return "", err
	}
	if err := t.alive(ctx); err != nil {
		return "", err
	}
	answer, err := t.askDelegate(ctx, body)
	if err != nil {
		t.client.denied(ctx, err)
		return "", t.aboutThis(ctx, err)
	}
	return Handle(answer.Handle), nil
}

func (t *Task) askDelegate(ctx context.Context, body wire.DelegationRequest) (answer wire.DelegationResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, maxBegin)
	defer cancel()
	q := question{method: http.MethodPost, path: pathOf(wire.PathDelegations, t.id), body: body}
	err = again(ctx, 0, func() error {
		answer = wire.DelegationResponse{}
		if _, err := t.client.ask(ctx, q, &answer); err != nil {
			return err
		}
		if err := Handle(answer.Handle).check(); err != nil {
			return fmt.Errorf("%w: it has answered a delegation without a handle", ErrUnavailable)
		}
		return nil
	})
	return answer, err
}

// aboutThis finds out whether a refusal means that this task is over, which it does not say.
func (t *Task) aboutThis(ctx context.Context, err error) error {
	if errors.Is(err, ErrTaskEnded) || errors.Is(err, ErrNotFound) {
		_ = t.client.beat(ctx, []*task{t.task}, patience)
	}
	if ended := t.ended(); ended != nil {
		return ended
	}
	return err
}

// Join begins a task below that of another workload, which has delegated it to this one (Task.Delegate). It is
// as Begin in all else: however often it is tried, the handle is used once, for one task. The task is this
// workload's own, and ends with the other's at the latest. Its tokens name both: sub is who has delegated, and
// client_id and the outermost act.sub are this workload (RFC 8693 §4.1).
//
// What the spec leaves empty of the ceiling is what was delegated; what it names must be in that, and in what
// this workload may have by itself. Errors, besides those of Begin: ErrNotDelegate when the handle is not for
// this workload, ErrHandleUsed when another task has joined by it, ErrHandleExpired when it is over,
// ErrTaskEnded when the task that it is of has ended, and ErrInvalid when it is none.
func (c *Client) Join(ctx context.Context, h Handle, spec TaskSpec) (*Task, error) {
	return c.join(ctx, context.WithoutCancel(ctx), h, spec)
}

// DoJoin is to Join what Do is to Begin.
func (c *Client) DoJoin(ctx context.Context, h Handle, spec TaskSpec, fn func(context.Context, *Task) error) error {
	task, err := c.join(ctx, ctx, h, spec)
	if err != nil {
		return err
	}
	return task.do(ctx, fn)
}

func (c *Client) join(ctx, base context.Context, h Handle, spec TaskSpec) (*Task, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	if spec.Parent != "" {
		return nil, fmt.Errorf("sdk: %w: TaskSpec.Parent is %q; the parent of a task that joins is the one that was delegated", ErrInvalid, spec.Parent)
	}
	return c.begin(ctx, base, origin{handle: h}, spec.or(c.defaults.openCeiling()))
}

// openCeiling is the spec without what it says of the ceiling, for tasks that have that from above.
func (s TaskSpec) openCeiling() TaskSpec {
	s.Audiences, s.Scopes, s.Details, s.Tokens = nil, nil, nil, nil
	return s
}
