package httpapi

import (
	"context"
	"math"
	"net/http"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// Bounds of acknowledgements. A server may have broker.MaxVerifiersPerServer instances, of which each sends four a
// second, and none of them may cost it the rate of what proves its verifiers fresh.
const (
	AckRate      = 4 * broker.MaxVerifiersPerServer // a second, of one SPIFFE ID
	AckBurst     = 2 * AckRate
	MaxAckBytes  = 4 << 10
	maxAckAtOnce = 64 // that are worked on at once
)

// acknowledging is the same router for acknowledgements, of which nothing is read but from a server of the audience.
func (r *router) acknowledging() *router {
	return r.guarded(kindAck, func(req *http.Request) (*http.Request, func(), error) {
		return req, func() {}, r.api.mayRead(workloadOf(req.Context()), req.URL.Query().Get("aud"))
	})
}

// ackRequest is a body that is smaller than the others.
type ackRequest struct{ wire.AckRequest }

func (ackRequest) limit() int64 { return MaxAckBytes }

func (a *API) acknowledge(ctx context.Context, r request[ackRequest]) (none, error) {
	// That the workload is one of the audience's servers was seen before the body was read.
	ack := broker.Ack{
		ID: r.Body.ID, MaxStale: time.Duration(min(max(r.Body.MaxStale, -1), math.MaxInt32)) * time.Second, Version: r.Body.Version, Closed: r.Body.Closed,
	}
	if !ack.Closed {
		at, err := wire.ParsePosition(r.Body.Position)
		if err != nil {
			return none{}, &broker.Invalid{Field: "position", Detail: "is none of this feed: send that of the last event, or of the snapshot"}
		}
		ack.Position = broker.Position(at)
	}
	r.Leave() // a position that is ahead is waited for, and who waits takes nobody's place
	return none{}, a.Broker.Acknowledge(ctx, r.Workload, r.Query("aud"), ack)
}

// encodePropagation is nil for what was not waited for.
func encodePropagation(p *broker.Propagation) *wire.Propagation {
	if p == nil {
		return nil
	}
	out := &wire.Propagation{Confirmed: p.Confirmed, Pending: []wire.PendingVerifier{}, Others: p.Others}
	for _, v := range p.Pending {
		out.Pending = append(out.Pending, wire.PendingVerifier{
			ID: v.ID, Workload: v.Workload.String(), Audience: v.Audience, RefusesAt: v.RefusesAt.UTC().Truncate(time.Millisecond),
		})
	}
	return out
}
