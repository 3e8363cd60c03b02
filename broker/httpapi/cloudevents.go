package httpapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of a source's bearer token, in characters: 32 random bytes in base64url have 43.
const (
	MinSourceToken = 43
	MaxSourceToken = 512
)

// batchBudget bounds what all events of a batch may take. Those that it does not reach are to be repeated.
const batchBudget = 5 * time.Second

// errNotSource is a workload that may not say that anything has ended.
var errNotSource = errors.New("the caller is not registered as a source of ends, under sources in the inventory")

// noToken is a caller of the public listener without the bearer token of a source (RFC 6750 §3.1).
type noToken struct{ shown bool }

func (*noToken) Error() string { return "no good bearer token" }

func (e *noToken) challenge() string {
	if e.shown {
		return `Bearer realm="errand", error="invalid_token"`
	}
	return `Bearer realm="errand"`
}

// withToken wants the bearer token of a source.
func withToken(a *API, r *http.Request) (outsider, func(), error) {
	if err := a.withinAddress(r.RemoteAddr); err != nil {
		return outsider{}, nil, err
	}
	if len(r.Header.Values("Authorization")) > 1 {
		return outsider{}, nil, &malformed{"Authorization is there more than once"}
	}
	token := authorization(r.Header, "Bearer")
	if len(token) < MinSourceToken || len(token) > MaxSourceToken {
		return outsider{}, nil, &noToken{token != ""}
	}
	source, err := a.Registry.SourceByToken(sha256.Sum256([]byte(token)))
	if err != nil {
		return outsider{}, nil, &noToken{true}
	}
	return a.fromSource(outsider{address: r.RemoteAddr, source: source})
}

// withSource wants a workload that is a source.
func withSource(a *API, r *http.Request) (outsider, func(), error) {
	w := workloadOf(r.Context())
	source, err := a.Registry.Source(w.ID)
	if err != nil {
		return outsider{}, nil, errNotSource
	}
	return a.fromSource(outsider{address: w.Address, source: source})
}

// fromSource lets few bodies of one source be read at once.
func (a *API) fromSource(o outsider) (outsider, func(), error) {
	if err := a.withinSource(o.source, 1); err != nil {
		return o, nil, err
	}
	if !a.admission.hooks.enter(o.source.Name) {
		return o, nil, errOverloaded
	}
	return o, func() { a.admission.hooks.leave(o.source.Name) }, nil
}

// cloudEvents is a body with one event, or with a batch of them.
type cloudEvents struct {
	events []cloudEvent
	batch  bool
}

// cloudEvent is one that was read, or the mistake in it.
type cloudEvent struct {
	id  string
	end broker.RefEnd
	err error
}

// refEnded ends what the events say. What is wrong with one in a batch is its own affair.
func (a *API) refEnded(ctx context.Context, r request[cloudEvents]) (wire.RefEndedResults, error) {
	by := outsiderOf(ctx)
	more := a.admission.sources.more(len(r.Body.events) - 1)
	if err := a.withinSource(by.source, more); err != nil {
		return wire.RefEndedResults{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, batchBudget)
	defer cancel()
	out := wire.RefEndedResults{Events: []wire.RefEndedResult{}}
	for i, event := range r.Body.events {
		result := wire.RefEndedResult{ID: event.id}
		err := event.err
		if err == nil {
			result.Ended, err = a.Broker.EndRef(ctx, by.source, by.address, event.end)
			err = below("data.", err)
		}
		if err != nil && !r.Body.batch {
			return wire.RefEndedResults{}, err
		}
		if err != nil {
			problem, _ := a.problem(below(fmt.Sprintf("events[%d].", i), err))
			result.Problem = &problem
		}
		out.Events = append(out.Events, result)
	}
	return out, nil
}

// read implements custom: the three content modes of the HTTP protocol binding (§3), told apart by the media
// type.
func (c *cloudEvents) read(w http.ResponseWriter, r *http.Request) error {
	media, err := mediaType(r.Header)
	if err != nil {
		return errEventType
	}
	switch media {
	case wire.TypeCloudEvent:
		text, err := readText(w, r, wire.MaxCloudEventBytes)
		if err != nil {
			return err
		}
		return c.one(structured(text))
	case wire.TypeCloudEvents:
		c.batch = true
		text, err := readText(w, r, wire.MaxCloudEventBatch)
		if err != nil {
			return err
		}
		return c.all(text)
	case wire.TypeJSON:
		text, err := readText(w, r, wire.MaxCloudEventBytes)
		if err != nil {
			return err
		}
		return c.one(binary(r.Header, text))
	}
	return errEventType
}

// one takes a single event, whose mistake is the request's.
func (c *cloudEvents) one(event cloudEvent) error {
	c.events = []cloudEvent{event}
	return event.err
}

func (c *cloudEvents) all(text []byte) error {
	if err := wantShapeOf('[', text); err != nil {
		return err
	}
	var list []jsontext.Value
	if err := strict.Unmarshal(text, &list); err != nil {
		return &malformed{explain(err)}
	}
	if len(list) == 0 || len(list) > wire.MaxCloudEvents {
		return &broker.Invalid{Field: "events", Detail: fmt.Sprintf("has %d entries; 1 to %d are allowed in a batch", len(list), wire.MaxCloudEvents)}
	}
	for _, each := range list {
		c.events = append(c.events, structured(each))
	}
	return nil
}

// envelope has the attributes that decide something.
type envelope struct {
	SpecVersion     string                    `json:"specversion"`
	ID              string                    `json:"id"`
	Source          string                    `json:"source"`
	Type            string                    `json:"type"`
	DataContentType *string                   `json:"datacontenttype"`
	Time            *string                   `json:"time"`
	Data            jsontext.Value            `json:"data"`
	More            map[string]jsontext.Value `json:",embed"`
}

// structured reads one event of the JSON format.
func structured(text []byte) (out cloudEvent) {
	if err := wantShape(text); err != nil {
		return cloudEvent{err: err}
	}
	var e envelope
	if err := strict.Unmarshal(text, &e); err != nil {
		return cloudEvent{err: &malformed{explain(err)}}
	}
	for name, value := range e.More {
		if err := wantExtension(name, value); err != nil {
			return cloudEvent{id: shownID(e.ID), err: err}
		}
	}
	return e.event()
}

// wantExtension allows what an extension can be (§3.1 of the specification), and does not look at it.
func wantExtension(name string, value jsontext.Value) error {
	if name == "data_base64" {
		return &malformed{"data_base64 is not taken; send the object itself, in data"}
	}
	if len(name) == 0 || len(name) > maxPlace || strings.ContainsFunc(name, func(c rune) bool { return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9') }) {
		return &malformed{fmt.Sprintf("%.64q can be no attribute of an event; check its spelling, and that it is in lower case", name)}
	}
	if kind := value.Kind(); kind == '{' || kind == '[' {
		return &malformed{fmt.Sprintf("%s is an attribute of the event, and must be a string, a number or a boolean", name)}
	}
	return nil
}

// binary reads one whose attributes are headers, each once.
func binary(h http.Header, text []byte) cloudEvent {
	if err := wantShape(text); err != nil {
		return cloudEvent{err: err}
	}
	var e envelope
	if len(h.Values("Ce-Time")) > 0 {
		e.Time = new(string)
	}
	for name, into := range map[string]*string{
		"Ce-Specversion": &e.SpecVersion, "Ce-Id": &e.ID, "Ce-Source": &e.Source, "Ce-Type": &e.Type, "Ce-Time": e.Time,
	} {
		values := h.Values(name)
		if len(values) > 1 {
			return cloudEvent{err: &malformed{name + " is there more than once"}}
		}
		if len(values) == 0 {
			continue // what is missing is said below
		}
		// Values are percent-encoded (§3.1.3.2).
		value, err := url.PathUnescape(values[0])
		if err != nil || !utf8.ValidString(value) {
			return cloudEvent{err: &malformed{name + " is not percent-encoded UTF-8"}}
		}
		*into = value
	}
	if e.SpecVersion == "" && e.ID == "" && e.Type == "" {
		return cloudEvent{err: errEventType} // it is no event at all
	}
	if len(h.Values("Ce-Datacontenttype")) > 0 {
		return cloudEvent{err: &malformed{"Ce-Datacontenttype is not for binary mode; Content-Type says it"}}
	}
	e.Data = text
	return e.event()
}

// event checks the attributes, then the data.
func (e envelope) event() cloudEvent {
	out := cloudEvent{id: shownID(e.ID)}
	switch {
	case e.SpecVersion != wire.CloudEventsVersion:
		out.err = &broker.Invalid{Field: "specversion", Detail: fmt.Sprintf("is %.16q; it must be %q", e.SpecVersion, wire.CloudEventsVersion)}
	case !isAttribute(e.ID):
		out.err = &broker.Invalid{Field: "id", Detail: fmt.Sprintf("has %d bytes; give the event an ID of 1 to %d bytes of printable ASCII", len(e.ID), wire.MaxCloudEventText)}
	case !isAttribute(e.Source):
		out.err = &broker.Invalid{Field: "source", Detail: fmt.Sprintf("has %d bytes; say whom the event is from, as the inventory has it, in 1 to %d bytes of printable ASCII", len(e.Source), wire.MaxCloudEventText)}
	case e.Type != wire.TypeRefEnded:
		out.err = &broker.Invalid{Field: "type", Detail: fmt.Sprintf("is %.64q; only %s is known here", e.Type, wire.TypeRefEnded)}
	case e.DataContentType != nil && *e.DataContentType != wire.TypeJSON:
		out.err = &broker.Invalid{Field: "datacontenttype", Detail: "must be " + wire.TypeJSON + ", or left out"}
	case len(e.Data) == 0:
		out.err = &broker.Invalid{Field: "data", Detail: "is missing; say in it what has ended, and how"}
	}
	var at time.Time
	if out.err == nil && e.Time != nil {
		var err error
		if at, err = time.Parse(time.RFC3339Nano, *e.Time); err != nil || at.IsZero() {
			out.err = &broker.Invalid{Field: "time", Detail: "is no time of RFC 3339; leave it out, or give it as 2027-01-31T12:00:00Z"}
		}
	}
	if out.err != nil {
		return out
	}
	out.end, out.err = refEnd(e.Data)
	out.end.URI, out.end.Time = e.Source, at.UTC()
	return out
}

func refEnd(data []byte) (broker.RefEnd, error) {
	if jsontext.Value(data).Kind() != '{' {
		return broker.RefEnd{}, &malformed{"data must be a JSON object"}
	}
	var body wire.RefEnded
	if err := strict.Unmarshal(data, &body, strict.RejectUnknownMembers(true)); err != nil {
		return broker.RefEnd{}, &malformed{"in data: " + explain(err)}
	}
	return broker.RefEnd{Ref: broker.TaskRef(body.Ref), State: broker.State(body.Outcome), Reason: body.Reason}, nil
}

// isAttribute allows what can be logged as it is.
func isAttribute(s string) bool {
	return s != "" && len(s) <= wire.MaxCloudEventText && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

// shownID is the ID in an answer, if it can be one.
func shownID(id string) string {
	if isAttribute(id) {
		return id
	}
	return ""
}
