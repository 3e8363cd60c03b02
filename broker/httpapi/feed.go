package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/sdk/wire"
)

// streamWrite is how long one write to a follower may take before the stream is given up.
const streamWrite = 10 * time.Second

func (a *API) snapshot(_ context.Context, r request[none]) (wire.FeedSnapshot, error) {
	audience := r.Query("aud")
	if err := a.mayRead(r.Workload, audience); err != nil {
		return wire.FeedSnapshot{}, err
	}
	return a.Feed.Snapshot(audience)
}

func (a *API) position(_ context.Context, r request[none]) (wire.FeedPosition, error) {
	nonce := r.Query("nonce")
	if !isRequestID(nonce) {
		return wire.FeedPosition{}, &broker.Invalid{Field: "nonce", Detail: "must be 1 to 64 letters, digits, - and _, fresh and random for every request"}
	}
	return a.Feed.Position(nonce)
}

// usageReport is a body that may be larger than the others.
type usageReport struct{ wire.UsageReport }

func (usageReport) limit() int64 { return wire.MaxUsageBytes }

func (a *API) usage(ctx context.Context, r request[usageReport]) (none, error) {
	// That the workload is one of the audience's servers was seen before the body was read.
	report := broker.UsageReport{Audience: r.Query("aud"), Batch: r.Body.Batch, Lost: r.Body.Lost}
	for _, g := range r.Body.Grants {
		u := broker.GrantUsage{Grant: broker.GrantID(g.Grant), First: g.First, Last: g.Last, Allowed: g.Allowed, Refused: g.Refused}
		for _, s := range g.Scopes {
			u.Scopes = append(u.Scopes, broker.ScopeUsage{Scope: s.Scope, Allowed: s.Allowed, Refused: s.Refused})
		}
		report.Grants = append(report.Grants, u)
	}
	return none{}, a.Broker.RecordUsage(ctx, r.Workload, report)
}

// follow streams the feed as server-sent events. Last-Event-ID is where the reader is.
func (a *API) follow(w http.ResponseWriter, r *http.Request, workload broker.Workload) error {
	audience := r.URL.Query().Get("aud")
	if err := a.mayRead(workload, audience); err != nil {
		return err
	}
	from, err := wire.ParsePosition(r.Header.Get(wire.HeaderLastEventID))
	if err != nil {
		return &malformed{wire.HeaderLastEventID + " must have the position of a snapshot, or of the last event"}
	}
	return a.stream(w, r, func(ctx context.Context, s *stream) error {
		return a.Feed.Follow(ctx, workload.ID.String(), audience, from, func(d feed.Delivery) error {
			return s.send(d.Event, d.ID, d.Data)
		})
	})
}

// stream is streamTo for a workload.
func (a *API) stream(w http.ResponseWriter, r *http.Request, follow func(context.Context, *stream) error) error {
	return a.streamTo(w, r, func() error {
		_, err := a.Identify(r)
		return err
	}, follow)
}

// streamTo answers with the events that follow sends, until that returns, or the connection has reached its
// age. Then, and when this replica is going away, the last event is a reset. stays says before each event
// whether the peer is still who it was.
func (a *API) streamTo(w http.ResponseWriter, r *http.Request, stays func() error, follow func(context.Context, *stream) error) error {
	if r.ContentLength != 0 {
		return &malformed{"a body does not belong here"} // it would have to be waited for
	}
	s := &stream{w: w, control: http.NewResponseController(w), verdict: func() error {
		if err := stays(); err != nil {
			return &unauthenticated{err}
		}
		return nil
	}}
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // the stream ends with its connection's age
	}
	ctx, cancel := whileYoung(r.Context())
	defer cancel()
	err := follow(ctx, s)
	if context.Cause(ctx) == broker.ErrLeaving && r.Context().Err() == nil {
		err = broker.ErrLeaving
	}
	if !s.begun {
		return err
	}
	if errors.Is(err, feed.ErrReset) || errors.Is(err, broker.ErrLeaving) {
		// Nobody may be there any more to be told.
		_ = s.send(wire.EventReset, "", []byte("{}"))
	}
	return nil
}

// leastStream is how long a stream lives at least, also on a connection that has reached its age.
const leastStream = 3 * time.Second

// whileYoung ends with the age of the connection; the cause is then broker.ErrLeaving.
func whileYoung(ctx context.Context) (context.Context, context.CancelFunc) {
	until, ok := connectionEnd(ctx)
	if !ok {
		return context.WithCancel(ctx)
	}
	if least := time.Now().Add(leastStream); until.Before(least) {
		until = least
	}
	return context.WithDeadlineCause(ctx, until, broker.ErrLeaving)
}

// mayRead lets only the registered servers of an audience read its part of the feed, acknowledge it, and report
// the usage of its grants. An unknown audience looks the same as a foreign one.
func (a *API) mayRead(w broker.Workload, audience string) error {
	registration, err := a.Registry.Audience(audience)
	if err != nil || !slices.Contains(registration.Servers, w.ID) {
		return fmt.Errorf("%w; the caller is %s", errNotServer, w.ID)
	}
	return nil
}

// stream writes server-sent events.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	verdict func() error // on the peer
	begun   bool
}

// send writes one event; id may be empty. data is one line.
func (s *stream) send(event, id string, data []byte) error {
	// Looked at each time: a stream outlives an SVID.
	if err := s.verdict(); err != nil {
		return err
	}
	if !s.begun {
		// The listener's deadlines are for requests that end; this one has its own for each write.
		if err := s.control.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		s.w.Header().Set("Content-Type", wire.TypeEvents)
		s.w.Header().Set("X-Accel-Buffering", "no")
		s.begun = true
	}
	if err := s.control.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("event: " + event + "\n")
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	b.WriteString("data: ")
	b.Write(data)
	b.WriteString("\n\n")
	if _, err := s.w.Write(b.Bytes()); err != nil {
		return err
	}
	return s.control.Flush()
}
