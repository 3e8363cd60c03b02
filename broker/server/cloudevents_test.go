package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// carrying begins a task that carries a reference.
func (c *caller) carrying(kind, id string) wire.BeginResponse {
	return c.beginAs(fmt.Sprintf(`{"name":"export","purpose":"FIN-212","ref":{"kind":%q,"id":%q},"tokens":[{"audience":"orders"}]}`, kind, id))
}

func (c *caller) state(id string) string {
	c.r.t.Helper()
	var task wire.Task
	c.get(taskPath(id, "")).into(c.r.t, &task)
	return task.State + "/" + task.Cause
}

// event is a structured one; extra is more of its members.
func event(id, source, kind, ref, extra string) string {
	return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":%q,"type":"errand.ref.ended","data":{"ref":{"kind":%q,"id":%q},"outcome":"failed"}%s}`, id, source, kind, ref, extra)
}

const forgeSource = "https://forge.example/runs"

func (c *caller) hook(body string, edit func(http.Header)) answer {
	return c.send("POST", wire.PathCloudEvents, body, func(r *http.Request) {
		r.Header.Set("Content-Type", wire.TypeCloudEvent)
		edit(r.Header)
	})
}

func withForge(h http.Header) { h.Set("Authorization", "Bearer "+forgeToken) }

func results(t *testing.T, a answer) (out []wire.RefEndedResult) {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var all wire.RefEndedResults
	a.into(t, &all)
	return all.Events
}

// TestCloudEventsEndTasks in each content mode, at the listener of each kind of source.
func TestCloudEventsEndTasks(t *testing.T) {
	r := start(t)
	c, watcher, forge := r.client(reportID), r.client(watcherID), r.passerby()
	modes := map[string]func(id string) answer{
		"structured, with an SVID": func(id string) answer {
			return watcher.hook(event("e1", watcherID, "k8s/job", id, `,"time":"`+time.Now().UTC().Format(time.RFC3339)+`","traceparent":"00-x","datacontenttype":"application/json"`), func(http.Header) {})
		},
		"structured, with a token": func(id string) answer { return forge.hook(event("e1", forgeSource, "ci/run", id, ""), withForge) },
		"binary, with a token": func(id string) answer {
			return forge.hook(fmt.Sprintf(`{"ref":{"kind":"ci/run","id":%q},"outcome":"failed"}`, id), func(h http.Header) {
				withForge(h)
				h.Set("Content-Type", "application/json; charset=utf-8")
				h.Set("Ce-Specversion", "1.0")
				h.Set("Ce-Id", "e%31")
				h.Set("Ce-Source", forgeSource)
				h.Set("Ce-Type", wire.TypeRefEnded)
				h.Set("Ce-Traceparent", "00-x")
			})
		},
		"a batch, with a token": func(id string) answer {
			return forge.hook("["+event("e1", forgeSource, "ci/run", id, "")+"]", func(h http.Header) {
				withForge(h)
				h.Set("Content-Type", wire.TypeCloudEvents)
			})
		},
	}
	for name, send := range modes {
		id := strings.ReplaceAll(name, " ", "-")
		kind := "ci/run"
		if strings.Contains(name, "SVID") {
			kind = "k8s/job"
		}
		begun := c.carrying(kind, id)
		if got := results(t, send(id)); len(got) != 1 || got[0] != (wire.RefEndedResult{ID: "e1", Ended: 1}) {
			t.Errorf("%s: %+v", name, got)
		}
		if s := c.state(begun.Task.ID); s != "failed/ref" {
			t.Errorf("%s: the task is %s", name, s)
		}
		later := c.carrying(kind, id+"-2")
		if got := results(t, send(id)); len(got) != 1 || got[0].Ended != 0 {
			t.Errorf("%s, a replay: %+v", name, got)
		}
		if s := c.state(later.Task.ID); s != "active/" {
			t.Errorf("%s: another task is %s", name, s)
		}
	}
}

// TestALateCloudEvent names a run of a minute ago: one that has begun since lives on, in each content mode.
func TestALateCloudEvent(t *testing.T) {
	r := start(t)
	c, forge := r.client(reportID), r.passerby()
	then := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	begun := c.carrying("ci/run", "nightly")
	binary := func(at string) answer {
		return forge.hook(`{"ref":{"kind":"ci/run","id":"nightly"},"outcome":"failed"}`, func(h http.Header) {
			withForge(h)
			h.Set("Content-Type", wire.TypeJSON)
			for name, value := range map[string]string{"Specversion": "1.0", "Id": "e", "Source": forgeSource, "Type": wire.TypeRefEnded, "Time": at} {
				h.Set("Ce-"+name, value)
			}
		})
	}
	for name, a := range map[string]answer{
		"structured": forge.hook(event("e", forgeSource, "ci/run", "nightly", `,"time":"`+then+`"`), withForge), "binary": binary(then),
	} {
		if got := results(t, a); got[0].Ended != 0 || c.state(begun.Task.ID) != "active/" {
			t.Errorf("%s: %+v, and the task is %s", name, got, c.state(begun.Task.ID))
		}
	}
	if a := binary("yesterday"); a.status != http.StatusUnprocessableEntity && a.status != http.StatusBadRequest {
		t.Errorf("a time that is none: %d %s", a.status, a.body)
	}
	if got := results(t, binary(time.Now().UTC().Format(time.RFC3339Nano))); got[0].Ended != 1 {
		t.Errorf("now: %+v", got)
	}
}

// TestABatchGoesOn after an event that is wrong, or may not be, and says what is with each.
func TestABatchGoesOn(t *testing.T) {
	r := start(t)
	c, forge := r.client(reportID), r.passerby()
	first, last := c.carrying("ci/run", "1"), c.carrying("ci/run", "2")
	a := forge.hook("["+strings.Join([]string{
		event("a", forgeSource, "ci/run", "1", ""),
		event("b", "https://other.example", "ci/run", "2", ""),
		event("c", forgeSource, "k8s/job", "2", ""),
		`{"specversion":"1.0","id":"d","source":"x","type":"com.example.done","data":{}}`,
		`{"id":"e"}`,
		`7`,
		strings.Replace(event("f", forgeSource, "ci/run", "2", ""), `"failed"`, `"lapsed"`, 1),
		event("g", forgeSource, "ci/run", "2", ""),
	}, ",")+"]", func(h http.Header) { withForge(h); h.Set("Content-Type", wire.TypeCloudEvents) })
	got := results(t, a)
	want := []string{"a 1 ", "b 0 denied", "c 0 denied", "d 0 invalid type", "e 0 invalid specversion", " 0 malformed", "f 0 invalid data.outcome", "g 1 "}
	if len(got) != len(want) {
		t.Fatalf("%s", a.body)
	}
	for i, g := range got {
		problem := ""
		if g.Problem != nil {
			problem = strings.TrimSpace(g.Problem.Type[strings.LastIndexByte(g.Problem.Type, '/')+1:] + " " + strings.TrimPrefix(g.Problem.Field, fmt.Sprintf("events[%d].", i)))
		}
		if text := fmt.Sprintf("%s %d %s", g.ID, g.Ended, problem); text != want[i] {
			t.Errorf("event %d: %q, want %q", i, text, want[i])
		}
	}
	for _, id := range []string{first.Task.ID, last.Task.ID} {
		if s := c.state(id); s != "failed/ref" {
			t.Errorf("a task is %s", s)
		}
	}
	r.eventually("what was refused is in the audit log", func() bool {
		log := r.auditLog()
		return strings.Contains(log, broker.RuleSourceURI) && strings.Contains(log, broker.RuleSourceKind) && strings.Contains(log, `"actor":"source forge"`)
	})
	if strings.Contains(r.auditLog()+r.logs.String(), forgeToken) {
		t.Error("the token is in a log")
	}
}

// TestCloudEventsAttacks: none ends anything, and each is answered as what it is.
func TestCloudEventsAttacks(t *testing.T) {
	r := start(t)
	c, watcher, anyone := r.client(reportID), r.client(watcherID), r.passerby()
	victim, foreign := c.carrying("ci/run", "1"), r.client("spiffe://prod/night").carrying("k8s/job", "1")
	good := event("e", forgeSource, "ci/run", "1", "")
	as := func(authorization ...string) func(http.Header) {
		return func(h http.Header) { h["Authorization"] = authorization }
	}
	and := func(name, value string) func(http.Header) {
		return func(h http.Header) { withForge(h); h.Set(name, value) }
	}
	nothing := func(http.Header) {}
	binary := func(edit func(http.Header)) func(http.Header) {
		return func(h http.Header) {
			withForge(h)
			h.Set("Content-Type", "application/json")
			h.Set("Ce-Specversion", "1.0")
			h.Set("Ce-Id", "e")
			h.Set("Ce-Source", forgeSource)
			h.Set("Ce-Type", wire.TypeRefEnded)
			edit(h)
		}
	}
	many := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat(good+",", n), ",") + "]" }
	data := `{"ref":{"kind":"ci/run","id":"1"},"outcome":"failed"}`
	for name, test := range map[string]struct {
		by     *caller
		body   string
		edit   func(http.Header)
		status int
		name   string
	}{
		"no token":                        {anyone, good, nothing, 401, wire.ProblemBadToken},
		"another token":                   {anyone, good, as("Bearer " + strings.Repeat("x", 43)), 401, wire.ProblemBadToken},
		"a short one":                     {anyone, good, as("Bearer " + forgeToken[:httpapi.MinSourceToken-1]), 401, wire.ProblemBadToken},
		"its digest":                      {anyone, good, as("Bearer " + forgeDigest), 401, wire.ProblemBadToken},
		"something behind it":             {anyone, good, as("Bearer " + forgeToken + "x"), 401, wire.ProblemBadToken},
		"another scheme":                  {anyone, good, as("Basic " + forgeToken), 401, wire.ProblemBadToken},
		"two headers":                     {anyone, good, as("Bearer "+forgeToken, "Bearer "+forgeToken), 400, wire.ProblemMalformed},
		"an end key":                      {anyone, good, as("EndKey " + victim.EndKey), 401, wire.ProblemBadToken},
		"a workload's token":              {anyone, good, as("Bearer " + victim.Tokens[0].AccessToken), 401, wire.ProblemBadToken},
		"the token at the other listener": {c, good, withForge, 403, wire.ProblemDenied},
		"the SVID's source by token":      {anyone, event("e", watcherID, "k8s/job", "1", ""), withForge, 403, wire.ProblemDenied},
		"a workload that is no source":    {c, good, nothing, 403, wire.ProblemDenied},
		"another's source":                {watcher, good, nothing, 403, wire.ProblemDenied},
		"another's workload":              {watcher, event("e", watcherID, "k8s/job", "1", ""), nothing, 403, wire.ProblemDenied},
		"another kind":                    {watcher, event("e", watcherID, "ci/run", "1", ""), nothing, 403, wire.ProblemDenied},

		"no content type":     {anyone, good, and("Content-Type", ""), 415, wire.ProblemMediaType},
		"plain JSON":          {anyone, good, and("Content-Type", "application/json"), 415, wire.ProblemMediaType},
		"a form":              {anyone, good, and("Content-Type", "application/x-www-form-urlencoded"), 415, wire.ProblemMediaType},
		"another format":      {anyone, good, and("Content-Type", "application/cloudevents+avro"), 415, wire.ProblemMediaType},
		"another charset":     {anyone, good, and("Content-Type", wire.TypeCloudEvent+"; charset=utf-16"), 415, wire.ProblemMediaType},
		"compressed":          {anyone, good, and("Content-Encoding", "gzip"), 415, wire.ProblemMediaType},
		"a batch as one":      {anyone, "[" + good + "]", withForge, 400, wire.ProblemMalformed},
		"one as a batch":      {anyone, good, and("Content-Type", wire.TypeCloudEvents), 400, wire.ProblemMalformed},
		"an empty batch":      {anyone, "[]", and("Content-Type", wire.TypeCloudEvents), 422, wire.ProblemInvalid},
		"one too many":        {anyone, many(wire.MaxCloudEvents + 1), and("Content-Type", wire.TypeCloudEvents), 422, wire.ProblemInvalid},
		"a large batch":       {anyone, "[" + strings.Repeat(" ", wire.MaxCloudEventBatch) + "]", and("Content-Type", wire.TypeCloudEvents), 413, wire.ProblemTooLarge},
		"a large one":         {anyone, good + strings.Repeat(" ", wire.MaxCloudEventBytes), withForge, 413, wire.ProblemTooLarge},
		"nothing":             {anyone, "", withForge, 400, wire.ProblemMalformed},
		"two of them":         {anyone, good + good, withForge, 400, wire.ProblemMalformed},
		"a member twice":      {anyone, event("e", forgeSource, "ci/run", "1", `,"id":"e"`), withForge, 400, wire.ProblemMalformed},
		"twice in the data":   {anyone, strings.Replace(good, `"outcome":`, `"outcome":"failed","outcome":`, 1), withForge, 400, wire.ProblemMalformed},
		"twice in a batch":    {anyone, "[" + event("e", forgeSource, "ci/run", "1", `,"id":"e"`) + "]", and("Content-Type", wire.TypeCloudEvents), 400, wire.ProblemMalformed},
		"unknown in the data": {anyone, strings.Replace(good, `"outcome":`, `"all":true,"outcome":`, 1), withForge, 400, wire.ProblemMalformed},
		"a name in capitals":  {anyone, event("e", forgeSource, "ci/run", "1", `,"ID":"e"`), withForge, 400, wire.ProblemMalformed},
		"an object attribute": {anyone, event("e", forgeSource, "ci/run", "1", `,"more":{}`), withForge, 400, wire.ProblemMalformed},
		"data in base64":      {anyone, event("e", forgeSource, "ci/run", "1", `,"data_base64":"e30="`), withForge, 400, wire.ProblemMalformed},
		"data that is text":   {anyone, event("e", forgeSource, "ci/run", "1", `,"datacontenttype":"text/plain"`), withForge, 422, wire.ProblemInvalid},
		"no time":             {anyone, event("e", forgeSource, "ci/run", "1", `,"time":"now"`), withForge, 422, wire.ProblemInvalid},
		"another version":     {anyone, strings.Replace(good, `"1.0"`, `"0.3"`, 1), withForge, 422, wire.ProblemInvalid},
		"another type":        {anyone, strings.Replace(good, "errand.ref.ended", "errand.task.ended", 1), withForge, 422, wire.ProblemInvalid},
		"no ID":               {anyone, event("", forgeSource, "ci/run", "1", ""), withForge, 422, wire.ProblemInvalid},
		"a long ID":           {anyone, event(strings.Repeat("e", wire.MaxCloudEventText+1), forgeSource, "ci/run", "1", ""), withForge, 422, wire.ProblemInvalid},
		"no source":           {anyone, event("e", "", "ci/run", "1", ""), withForge, 422, wire.ProblemInvalid},
		"an empty ref":        {anyone, event("e", forgeSource, "", "", ""), withForge, 422, wire.ProblemInvalid},
		"a wild ref":          {anyone, event("e", forgeSource, "ci/run", "*", ""), withForge, 200, ""},
		"an operator's end":   {anyone, strings.Replace(good, `"failed"`, `"revoked"`, 1), withForge, 422, wire.ProblemInvalid},

		"binary, an ID twice":  {anyone, data, binary(func(h http.Header) { h["Ce-Id"] = []string{"a", "b"} }), 400, wire.ProblemMalformed},
		"binary, not encoded":  {anyone, data, binary(func(h http.Header) { h.Set("Ce-Id", "%zz") }), 400, wire.ProblemMalformed},
		"binary, no UTF-8":     {anyone, data, binary(func(h http.Header) { h.Set("Ce-Id", "%ff") }), 400, wire.ProblemMalformed},
		"binary, a list":       {anyone, "[" + data + "]", binary(nothing), 400, wire.ProblemMalformed},
		"binary, no source":    {anyone, data, binary(func(h http.Header) { h.Del("Ce-Source") }), 422, wire.ProblemInvalid},
		"binary, a type there": {anyone, data, binary(func(h http.Header) { h.Set("Ce-Datacontenttype", "text/plain") }), 400, wire.ProblemMalformed},
		"binary, an event":     {anyone, good, binary(nothing), 400, wire.ProblemMalformed},
	} {
		a := test.by.hook(test.body, test.edit)
		if a.status != test.status || a.name() != test.name {
			t.Errorf("%s: %d %s, want %d %s", name, a.status, a.body, test.status, test.name)
		}
		if test.status == 401 && !strings.HasPrefix(a.header.Get("WWW-Authenticate"), `Bearer realm="errand"`) {
			t.Errorf("%s: %q", name, a.header.Get("WWW-Authenticate"))
		}
	}
	if a := anyone.get(wire.PathCloudEvents); a.status != http.StatusMethodNotAllowed {
		t.Errorf("a GET: %d %s", a.status, a.body)
	}
	if s := c.state(victim.Task.ID); s != "active/" {
		t.Errorf("after all that the task is %s", s)
	}
	if s := r.client("spiffe://prod/night").state(foreign.Task.ID); s != "active/" {
		t.Errorf("after all that the other one's is %s", s)
	}
	full := strings.Replace(many(wire.MaxCloudEvents), "]", strings.Repeat(" ", wire.MaxCloudEventBatch-len(many(wire.MaxCloudEvents)))+"]", 1)
	if got := results(t, anyone.hook(full, and("Content-Type", wire.TypeCloudEvents))); len(got) != wire.MaxCloudEvents || got[0].Ended != 1 || got[99].Ended != 0 {
		t.Errorf("as many and as large as they may be: %d", len(got))
	}
}

// TestRateOfSources: each event counts, and more than a source's rate wait.
func TestRateOfSources(t *testing.T) {
	at := time.Now()
	r := within(t, httpapi.Limits{Rate: 1, Burst: 20}, func(c *server.Config) { c.Now = func() time.Time { return at } })
	forge := r.passerby()
	batch := "[" + strings.TrimSuffix(strings.Repeat(event("e", forgeSource, "ci/run", "1", "")+",", 18), ",") + "]"
	results(t, forge.hook(batch, func(h http.Header) { withForge(h); h.Set("Content-Type", wire.TypeCloudEvents) }))
	for range 2 {
		results(t, forge.hook(event("e", forgeSource, "ci/run", "1", ""), withForge))
	}
	if a := forge.hook(event("e", forgeSource, "ci/run", "1", ""), withForge); a.status != http.StatusTooManyRequests || retryAfter(t, a) != time.Second {
		t.Errorf("%d %s", a.status, a.body)
	}
	results(t, r.client(watcherID).hook(event("e", watcherID, "k8s/job", "1", ""), func(http.Header) {})) // another one's is its own
}

// TestEventsWhileTheStoreIsAway are to be repeated; in a batch each says so.
func TestEventsWhileTheStoreIsAway(t *testing.T) {
	b := failing(away)
	r := startFederated(t, nil, func(c *server.Config) { c.Store = b.store(c.Store) })
	c, forge := r.client(reportID), r.passerby()
	begun := c.beginAs(`{"name":"export","purpose":"FIN-212","lease_seconds":600,"ref":{"kind":"ci/run","id":"1"}}`)
	b.fail()
	one := event("e", forgeSource, "ci/run", "1", "")
	if a := forge.hook(one, withForge); a.status != http.StatusServiceUnavailable || a.name() != wire.ProblemStoreUnavailable {
		t.Errorf("%d %s", a.status, a.body)
	}
	got := results(t, forge.hook("["+one+"]", func(h http.Header) { withForge(h); h.Set("Content-Type", wire.TypeCloudEvents) }))
	if len(got) != 1 || got[0].Problem == nil || got[0].Problem.Status != http.StatusServiceUnavailable {
		t.Errorf("%+v", got)
	}
	b.mend()
	r.eventually("it ends", func() bool { forge.hook(one, withForge); return c.state(begun.Task.ID) == "failed/ref" })
}

// TestWhoamiOfASource: one that is nothing else is somebody, too.
func TestWhoamiOfASource(t *testing.T) {
	r := start(t)
	var who wire.Whoami
	a := r.client(watcherID).get(wire.PathWhoami)
	a.into(t, &who)
	if a.status != http.StatusOK || who.Source != "cluster" || who.Owner != "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := r.client(watcherID).post(wire.PathTasks, beginBody); a.status != http.StatusForbidden || a.name() != wire.ProblemUnregistered {
		t.Errorf("a begin of it: %d %s", a.status, a.body)
	}
}
