package httpapi

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// events streams the ends of the caller's tasks that the query names, each as "task". It has no place among
// those that are worked on at once, since it would keep that.
func (a *API) events(w http.ResponseWriter, r *http.Request, workload broker.Workload) error {
	var tasks []broker.Followed
	for _, text := range r.URL.Query()["task"] {
		task, err := followed(text)
		if err != nil {
			return err
		}
		tasks = append(tasks, task)
	}
	id := broker.NewStreamID()
	return a.stream(w, r, func(ctx context.Context, s *stream) error {
		return a.Broker.Follow(ctx, workload, id, tasks, func(fates []broker.Fate) error {
			if !s.begun {
				w.Header().Set(wire.HeaderStream, string(id))
			}
			if len(fates) == 0 {
				return s.send(wire.EventBeat, "", []byte("{}"))
			}
			for _, fate := range fates {
				data, err := json.Marshal(encodeFate(fate))
				if err != nil {
					return err
				}
				if err := s.send(wire.EventTaskEnded, "", data); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func encodeFate(f broker.Fate) wire.TaskEnded {
	out := wire.TaskEnded{ID: string(f.Task), State: string(f.State), Cause: string(f.Cause)}
	switch {
	case f.Adopted:
		out.State = wire.StateAdopted
	case f.State == "":
		out.State = wire.StateUnknown
	}
	return out
}
