package sdk

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"

	"github.com/errandhq/errand/sdk/wire"
)

// EndRef says that what a reference names has ended, and how: Completed, Failed or Canceled. Every live task
// that carries it in TaskSpec.Ref ends so, with everything below it, if it is of a workload whose tasks this
// client may end: the inventory must have the client's SPIFFE ID under sources, and that is all that it needs.
// ended is how many this call has ended. The Ref's URL is not looked at. A task that begins later is not
// touched, so a reference should name one run, and not something that runs again.
//
// Repeating does no harm. Errors: ErrInvalid, ErrDenied, ErrUnavailable, ErrClosed; after ErrUnavailable it may
// have happened, in part, and is to be repeated.
func (c *Client) EndRef(ctx context.Context, ref Ref, outcome State, reason string) (ended int, err error) {
	select {
	case <-c.life.Done():
		return 0, fmt.Errorf("sdk: %w", ErrClosed)
	default:
	}
	event := wire.CloudEvent{
		SpecVersion: wire.CloudEventsVersion, ID: rand.Text(), Source: c.ID().String(), Type: wire.TypeRefEnded,
		Data: wire.RefEnded{Ref: wire.Ref{Kind: ref.Kind, ID: ref.ID}, Outcome: string(outcome), Reason: reason},
	}
	var answer wire.RefEndedResults
	_, err = c.ask(ctx, question{method: http.MethodPost, path: wire.PathCloudEvents, body: event, media: wire.TypeCloudEvent}, &answer)
	if err != nil {
		c.denied(ctx, err)
		return 0, fmt.Errorf("sdk: the end of %s %s: %w", ref.Kind, ref.ID, err)
	}
	if len(answer.Events) != 1 || answer.Events[0].ID != event.ID {
		return 0, fmt.Errorf("sdk: the end of %s %s: %w: it has answered something else", ref.Kind, ref.ID, ErrUnavailable)
	}
	return answer.Events[0].Ended, nil
}
