package httpapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// FuzzCloudEvents: what is taken has all that is required, and says the same when it is written again.
func FuzzCloudEvents(f *testing.F) {
	const good = `{"specversion":"1.0","id":"e","source":"/s","type":"errand.ref.ended","data":{"ref":{"kind":"k8s/job","id":"1"},"outcome":"failed","reason":"r"}}`
	for _, seed := range [][3]string{
		{wire.TypeCloudEvent, good, ""},
		{wire.TypeCloudEvents, "[" + good + "," + good + "]", ""},
		{wire.TypeCloudEvents, "[1,{},[]]", ""},
		{wire.TypeJSON, `{"ref":{"kind":"k8s/job","id":"1"},"outcome":"failed"}`, "e%41"},
		{wire.TypeJSON, good, "e"},
		{wire.TypeCloudEvent + ";charset=utf-8", strings.Replace(good, `"1.0"`, `"1.0","x":1,"time":"2027-01-31T12:00:00Z"`, 1), ""},
		{wire.TypeCloudEvent, strings.Replace(good, `"id":"e"`, `"id":"e","id":"f"`, 1), ""},
		{wire.TypeCloudEvent, strings.Repeat("[", 100), ""},
		{"", "", "%"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, contentType, body, id string) {
		read := func(contentType, body string) (c cloudEvents, err error) {
			r := httptest.NewRequest(http.MethodPost, wire.PathCloudEvents, strings.NewReader(body))
			r.Header = http.Header{"Content-Type": {contentType}}
			if id != "" {
				r.Header["Ce-Id"], r.Header["Ce-Source"] = []string{id}, []string{"/s"}
				r.Header["Ce-Type"], r.Header["Ce-Specversion"] = []string{wire.TypeRefEnded}, []string{"1.0"}
			}
			return c, c.read(httptest.NewRecorder(), r)
		}
		got, err := read(contentType, body)
		if err != nil {
			return
		}
		if len(got.events) == 0 || len(got.events) > wire.MaxCloudEvents || !got.batch && len(got.events) != 1 {
			t.Fatalf("%d events", len(got.events))
		}
		for _, e := range got.events {
			if e.err != nil {
				if !got.batch {
					t.Fatal("a single event with a mistake was taken")
				}
				continue
			}
			if e.id == "" || e.end.URI == "" {
				t.Fatalf("an event without what is required: %+v", e)
			}
			at := ""
			if !e.end.Time.IsZero() {
				at = e.end.Time.Format(time.RFC3339Nano)
			}
			text, err := json.Marshal(wire.CloudEvent{
				SpecVersion: wire.CloudEventsVersion, ID: e.id, Source: e.end.URI, Type: wire.TypeRefEnded, Time: at,
				Data: wire.RefEnded{Ref: wire.Ref(e.end.Ref), Outcome: string(e.end.State), Reason: e.end.Reason},
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(text) > wire.MaxCloudEventBytes {
				continue // it was written shorter
			}
			again, err := read(wire.TypeCloudEvent, string(text))
			if err != nil || again.events[0] != e {
				t.Fatalf("%+v was read again as %+v, %v", e, again, err)
			}
		}
		if v, err := url.PathUnescape(id); contentType == wire.TypeJSON && (err != nil || got.events[0].id != v) {
			t.Fatalf("the ID %q was read as %q", id, got.events[0].id)
		}
	})
}
