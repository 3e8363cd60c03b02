package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// look is a GET at the operator listener.
func (c *caller) look(path string, query url.Values) answer {
	c.r.t.Helper()
	return c.send("GET", path+"?"+query.Encode(), "", c.at("operator"))
}

func (c *caller) lookInto(v any, path string, query url.Values) {
	c.r.t.Helper()
	a := c.look(path, query)
	if a.status != http.StatusOK {
		c.r.t.Fatalf("GET %s?%s: %d %s", path, query.Encode(), a.status, a.body)
	}
	a.into(c.r.t, v)
}

// watch follows a list for as long as the test takes.
func (c *caller) watch(path string) *events {
	c.r.t.Helper()
	patient := &caller{r: c.r, base: "https://" + c.r.Listening()["operator"], http: &http.Client{Transport: accepting{c.http.Transport}}}
	return patient.stream(path, "")
}

// accepting asks for server-sent events.
type accepting struct{ http.RoundTripper }

func (a accepting) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Accept", wire.TypeEvents)
	return a.RoundTripper.RoundTrip(r)
}

// TestLists: an operator sees whatever workloads do, with who answers for it, page by page.
func TestLists(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	viewer, report, night := r.client(viewerID), r.client(reportID), r.client("spiffe://prod/night")
	root := report.beginAs(`{"name":"export","purpose":"FIN-212","labels":{"env":"prod"},"tokens":[{"audience":"orders"},{"audience":"files"}]}`)
	a := report.post(taskPath(root.Task.ID, "/children"), beginBody)
	var child wire.BeginResponse
	a.into(t, &child)
	other := night.begin()
	night.end(other.Task.ID, "completed")

	var grants wire.GrantList
	viewer.lookInto(&grants, wire.PathGrants, url.Values{"workload": {reportID}, "audience": {"orders"}, "state": {wire.GrantLive}})
	if len(grants.Items) != 2 || grants.NextCursor != "" {
		t.Fatalf("%+v", grants)
	}
	for _, g := range grants.Items {
		if g.Owner != "team-fin" || g.TaskName != "export" || g.Purpose != "FIN-212" || !g.Live || g.TaskPath[0] != root.Task.ID || g.Audience != "orders" {
			t.Errorf("%+v", g)
		}
	}
	var one wire.GrantItem
	if viewer.lookInto(&one, wire.PathGrants+"/"+grants.Items[0].ID, nil); one.ID != grants.Items[0].ID || one.Owner != "team-fin" || !one.Live {
		t.Errorf("%+v", one)
	}
	var task wire.TaskItem
	if viewer.lookInto(&task, taskPath(other.Task.ID, ""), nil); task.State != wire.StateCompleted || task.Owner != "team-fin" || task.Workload != "spiffe://prod/night" {
		t.Errorf("%+v", task)
	}
	var tree wire.TaskList
	if viewer.lookInto(&tree, taskPath(root.Task.ID, "/tree"), nil); len(tree.Items) != 2 || *tree.Items[0].LiveGrants+*tree.Items[1].LiveGrants != 3 {
		t.Errorf("%+v", tree)
	}
	seen := map[string]bool{}
	for query := (url.Values{"page_size": {"1"}}); ; {
		var page wire.TaskList
		viewer.lookInto(&page, wire.PathTasks, query)
		for _, item := range page.Items {
			seen[item.ID] = true
		}
		if page.NextCursor == "" {
			break
		}
		query.Set("cursor", page.NextCursor)
		again := url.Values{"page_size": {"1"}, "cursor": {page.NextCursor}, "name": {"export"}}
		if a := viewer.look(wire.PathTasks, again); a.status != 422 || a.problem.Field != "cursor" {
			t.Errorf("a cursor with another filter: %d %s", a.status, a.body)
		}
	}
	if len(seen) != 3 {
		t.Errorf("all pages have %v", seen)
	}
	if a := viewer.look(wire.PathTasks, url.Values{"workloads": {reportID}}); a.status != 400 || !strings.Contains(a.problem.Detail, "did you mean workload?") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestWatchedList: what was there, then that this was all, then what is new, has changed, or is gone; a heartbeat is no
// news. The stream ends with a reset when the replica goes.
func TestWatchedList(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	viewer, report := r.client(viewerID), r.client(reportID)
	first := report.begin()
	tasks := viewer.watch(wire.PathTasks + "?state=active")
	var item wire.TaskItem
	if tasks.into(t, wire.EventAdded, &item); item.ID != first.Task.ID || item.Owner != "team-fin" {
		t.Errorf("%+v", item)
	}
	tasks.next(t, wire.EventCurrent)
	grants := viewer.watch(wire.PathGrants)
	var grant wire.GrantItem
	grants.into(t, wire.EventAdded, &grant)
	grants.next(t, wire.EventCurrent)
	report.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}]}`, first.Task.ID))
	second := report.begin()
	if name := tasks.news(t, &item); name != wire.EventAdded || item.ID != second.Task.ID {
		t.Errorf("%s: %+v", name, item)
	}
	if grants.into(t, wire.EventAdded, &grant); grant.Task != second.Task.ID || !grant.Live {
		t.Errorf("%+v", grant)
	}
	report.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q,"note":"half"}]}`, first.Task.ID))
	if tasks.into(t, wire.EventChanged, &item); item.ID != first.Task.ID || item.Note != "half" {
		t.Errorf("%+v", item)
	}
	report.end(second.Task.ID, "completed")
	var gone struct{ ID string }
	if tasks.into(t, wire.EventRemoved, &gone); gone.ID != second.Task.ID {
		t.Errorf("%+v", gone)
	}
	if grants.into(t, wire.EventChanged, &grant); grant.Task != second.Task.ID || grant.Live || grant.TaskState != wire.StateCompleted {
		t.Errorf("%+v", grant)
	}
	r.stop()
	tasks.next(t, wire.EventReset)
	grants.next(t, wire.EventReset)
}

// news reads the next event that is no beat, and returns its name.
func (e *events) news(t *testing.T, out any) string {
	t.Helper()
	name := ""
	for e.Scan() {
		if event, ok := strings.CutPrefix(e.Text(), "event: "); ok {
			name = event
		}
		if data, ok := strings.CutPrefix(e.Text(), "data: "); ok && name != wire.EventBeat {
			if err := json.Unmarshal([]byte(data), out); err != nil {
				t.Fatal(err)
			}
			return name
		}
	}
	t.Fatalf("the stream has ended: %v", e.Err())
	return ""
}

// TestWatchedListRefuses what cannot be watched, as an answer and not as a stream.
func TestWatchedListRefuses(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	viewer := r.client(viewerID)
	events := func(req *http.Request) {
		viewer.at("operator")(req)
		req.Header.Set("Accept", wire.TypeEvents)
	}
	for path, name := range map[string]string{
		wire.PathTasks + "?state=live":    wire.ProblemInvalid,
		wire.PathTasks + "?page_size=3":   wire.ProblemInvalid,
		wire.PathGrants + "?workload=x":   wire.ProblemInvalid,
		wire.PathGrants + "?workloads=x":  wire.ProblemMalformed,
		wire.PathGrants + "?state=active": wire.ProblemInvalid,
	} {
		if a := viewer.send("GET", path, "", events); a.name() != name {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for range broker.MaxWatched + 1 {
		r.plant(reportID)
	}
	if a := viewer.send("GET", wire.PathTasks, "", events); a.status != 422 || !strings.Contains(a.problem.Detail, "more than 2000 items") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
