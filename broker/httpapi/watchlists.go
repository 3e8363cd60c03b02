package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// watchTasks streams how a list of tasks changes.
func (a *API) watchTasks(w http.ResponseWriter, r *http.Request, operator broker.Operator) error {
	req, err := watchRequest(r.URL.RawQuery, listRequest)
	if err != nil {
		return err
	}
	return a.streamTo(w, r, a.operatorStays(r), func(ctx context.Context, s *stream) error {
		seen := sight{}
		return resetOn(s, a.Broker.WatchTasks(ctx, operator, req, func(tasks []broker.Task, beat bool) error {
			if beat {
				return s.send(wire.EventBeat, "", []byte("{}"))
			}
			round := seen.round(s)
			for _, task := range tasks {
				item := a.taskItem(task)
				quiet := item // a heartbeat that says nothing is no news
				quiet.LeaseExpiresAt, quiet.NotedAt = time.Time{}, nil
				round.item(item.ID, item, quiet)
			}
			return round.end()
		}))
	})
}

// watchGrants streams how a list of grants changes.
func (a *API) watchGrants(w http.ResponseWriter, r *http.Request, operator broker.Operator) error {
	req, err := watchRequest(r.URL.RawQuery, grantListRequest)
	if err != nil {
		return err
	}
	return a.streamTo(w, r, a.operatorStays(r), func(ctx context.Context, s *stream) error {
		seen := sight{}
		return resetOn(s, a.Broker.WatchGrants(ctx, operator, req, func(grants []broker.GrantStatus, beat bool) error {
			if beat {
				return s.send(wire.EventBeat, "", []byte("{}"))
			}
			round := seen.round(s)
			for _, status := range grants {
				item := a.grantItem(status)
				round.item(item.ID, item, item)
			}
			return round.end()
		}))
	})
}

// operatorStays is for streams: whether the peer is still an operator.
func (a *API) operatorStays(r *http.Request) func() error {
	return func() error {
		_, err := a.IdentifyOperator(r)
		return err
	}
}

func watchRequest(raw string, read func(string) (broker.ListRequest, error)) (broker.ListRequest, error) {
	req, err := read(raw)
	if err == nil && (req.Size != 0 || req.Cursor != "") {
		err = &broker.Invalid{Field: "page_size", Detail: "and cursor do not go with a list that is watched, which has one page; leave them out"}
	}
	return req, err
}

// resetOn has a stream that has begun end with a reset, whatever ends it: whoever connects again is told what is wrong.
func resetOn(s *stream, err error) error {
	if s.begun && err != nil {
		return fmt.Errorf("%w: %w", broker.ErrLeaving, err)
	}
	return err
}

// sight is what a watcher has been told, by ID: a digest of each item.
type sight map[string][sha256.Size]byte

// round is one look at all there is.
type round struct {
	sight
	s     *stream
	first bool
	gone  map[string]bool // what has not been looked at yet
	err   error
}

func (k sight) round(s *stream) *round {
	r := &round{sight: k, s: s, first: !s.begun, gone: map[string]bool{}}
	for id := range k {
		r.gone[id] = true
	}
	return r
}

// item tells of an item that is new, or not what it was; quiet is what counts of it.
func (r *round) item(id string, item, quiet any) {
	if r.err != nil {
		return
	}
	text, err := json.Marshal(quiet)
	if err != nil {
		r.err = err
		return
	}
	digest := sha256.Sum256(text)
	was, there := r.sight[id]
	delete(r.gone, id)
	if there && was == digest {
		return
	}
	event := wire.EventAdded
	if there {
		event = wire.EventChanged
	}
	r.sight[id] = digest
	r.err = r.send(event, item)
}

func (r *round) send(event string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.s.send(event, "", data)
}

// end tells what is gone, and after the first round that this was all.
func (r *round) end() error {
	for _, id := range slices.Sorted(maps.Keys(r.gone)) {
		if r.err != nil {
			return r.err
		}
		delete(r.sight, id)
		r.err = r.send(wire.EventRemoved, struct {
			ID string `json:"id"`
		}{id})
	}
	if r.err == nil && r.first {
		r.err = r.send(wire.EventCurrent, struct{}{})
	}
	return r.err
}
