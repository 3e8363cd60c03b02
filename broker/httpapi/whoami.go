package httpapi

import (
	"context"
	"errors"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

func (a *API) whoami(ctx context.Context, r request[none]) (wire.Whoami, error) {
	self, err := a.Broker.Whoami(ctx, r.Workload)
	if err != nil {
		return wire.Whoami{}, err
	}
	out := wire.Whoami{
		Workload: r.Workload.ID.String(), ExpiresAt: r.Workload.NotAfter.UTC(),
		Owner: self.Registration.Owner, Purpose: self.Registration.Purpose,
		Ceiling: map[string][]string{}, Locks: []wire.Lock{}, Serves: append([]string{}, self.Serves...), Source: self.Source,
		Replica: a.replica(),
	}
	for audience, scopes := range self.Registration.Ceiling {
		out.Ceiling[audience] = scopes
	}
	for _, lock := range self.Locks {
		out.Locks = append(out.Locks, wire.Lock{ID: string(lock.ID), Reason: lock.Reason, ExpiresAt: lock.Expires.UTC()})
	}
	return out, nil
}

// replica tells a workload what it needs to find a fault, and nothing of what is behind the broker: what
// is wrong with this process and its files is for its own log.
func (a *API) replica() wire.Replica {
	r := wire.Replica{Version: a.Version, Time: a.Broker.Now().UTC().Truncate(time.Millisecond), Ready: true}
	if err := a.Broker.Ready(); err != nil {
		r.Ready, r.Reason = false, err.Error()
	} else if err := a.Ready(); err != nil && !errors.Is(err, ErrStopping) {
		r.Ready, r.Reason = false, "this replica's own SVID, trust bundle or signing key is not in order; its log has more"
	}
	return r
}
