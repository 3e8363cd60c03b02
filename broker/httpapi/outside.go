package httpapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// outsider is somebody outside of any task, with what they have shown.
type outsider struct {
	address string                    // for the audit log
	key     broker.EndKey             // of a task that they want to end
	source  broker.SourceRegistration // that they are
}

type outsiderKey struct{}

func outsiderOf(ctx context.Context) outsider {
	o, _ := ctx.Value(outsiderKey{}).(outsider)
	return o
}

// outside is the same router for routes that are about what outsiders say. admit decides whether one is let
// in before anything of the body is read, and returns what takes that back.
func (r *router) outside(admit func(*API, *http.Request) (outsider, func(), error)) *router {
	return r.guarded(kindOutside, func(req *http.Request) (*http.Request, func(), error) {
		who, leave, err := admit(r.api, req)
		return req.WithContext(context.WithValue(req.Context(), outsiderKey{}, who)), leave, err
	})
}

// authorization returns what stands behind a scheme in the one Authorization header, and "" when there is
// none, another one, or more than one.
func authorization(h http.Header, scheme string) string {
	values := h.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	first, rest, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(first, scheme) {
		return ""
	}
	return strings.TrimLeft(rest, " ")
}

// withEndKey wants something that looks like an end key. Only the path and the body tell whether it is the
// right one. A caller is held to the rate of its address first.
func withEndKey(a *API, r *http.Request) (outsider, func(), error) {
	if err := a.withinAddress(r.RemoteAddr); err != nil {
		return outsider{}, nil, err
	}
	key, err := broker.ParseEndKey(authorization(r.Header, "EndKey"))
	if err != nil || key == (broker.EndKey{}) {
		return outsider{}, nil, broker.ErrEndKey
	}
	from := network(r.RemoteAddr)
	if !a.admission.outside.enter(from) {
		return outsider{}, nil, errOverloaded
	}
	return outsider{address: r.RemoteAddr, key: key}, func() { a.admission.outside.leave(from) }, nil
}

// keyedEnd is an EndRequest of somebody who has the end key alone.
type keyedEnd struct{ wire.EndRequest }

func (keyedEnd) limit() int64 { return MaxKeyedEnd }

// endByKey ends a task for whoever has its end key. It answers an ID that is none as a key that is wrong.
func (a *API) endByKey(ctx context.Context, r request[keyedEnd]) (ended, error) {
	switch {
	case r.Body.EndKey != "":
		return ended{}, &broker.Invalid{Field: "end_key", Detail: "has no place here; send it once, as \"Authorization: EndKey end_…\""}
	case r.Body.WaitSeconds != 0:
		return ended{}, &broker.Invalid{Field: "wait_seconds", Detail: "is for the workload listener; leave it out here"}
	case r.Body.Workload == "":
		return ended{}, &broker.Invalid{Field: "workload", Detail: "is empty; say whose the task is: the SPIFFE ID of the workload that has begun it"}
	}
	workload, err := spiffeid.FromString(r.Body.Workload)
	if err != nil {
		return ended{}, &broker.Invalid{Field: "workload", Detail: "is not a SPIFFE ID; give that of the workload that has begun the task, as spiffe://example.org/report"}
	}
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return ended{}, broker.ErrEndKey
	}
	by := outsiderOf(ctx)
	receipt, err := a.Broker.EndByKey(ctx, by.address, workload, id, broker.EndRequest{
		State: broker.State(r.Body.Outcome), Reason: r.Body.Reason, Key: by.key, Holder: r.Body.Holder,
	})
	if err != nil {
		return ended{}, err
	}
	return ended{encodeReceipt(receipt)}, nil
}
