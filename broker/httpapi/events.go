package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

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

// followed reads a task to follow: its ID, and perhaps a colon and the number of its holder.
func followed(text string) (f broker.Followed, err error) {
	bad := &broker.Invalid{Field: "task", Detail: "is not the ID of a task; name one as ?task=tsk_…, or ?task=tsk_…:1 with your number as its holder, and more with &task="}
	id, holder, numbered := strings.Cut(text, ":")
	if f.Task, err = broker.ParseTaskID(id); err != nil {
		return f, bad
	}
	if !numbered {
		return f, nil
	}
	if f.Holder, err = strconv.Atoi(holder); err != nil || f.Holder <= 0 || strconv.Itoa(f.Holder) != holder {
		return f, bad
	}
	return f, nil
}
