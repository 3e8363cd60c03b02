package server_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// Rates that no test here meets, so that it is the trees that are tested.
var unhurried = httpapi.Limits{IssueRate: httpapi.MaxRate, IssueBurst: httpapi.MaxRate, Rate: httpapi.MaxRate, Burst: httpapi.MaxRate}

// crowded is an inventory with workloads that may have more live tasks than a task may have children.
func crowded(c *server.Config) {
	known, err := registry.Parse([]byte(inventory +
		`  - {id: spiffe://prod/crowd, owner: team-fin, purpose: crowds, ceiling: {orders: ["orders:read"]}, max_tasks: 5000}` + "\n"))
	if err != nil {
		panic(err)
	}
	c.Registry = known
}

// child begins a task below another one and checks that it worked.
func (c *caller) child(parent, body string) wire.BeginResponse {
	c.r.t.Helper()
	a := c.post(taskPath(parent, "/children"), body)
	if a.status != http.StatusCreated {
		c.r.t.Fatalf("a child: %d %s", a.status, a.body)
	}
	var out wire.BeginResponse
	a.into(c.r.t, &out)
	if a.header.Get("Location") != wire.PathTasks+"/"+out.Task.ID {
		c.r.t.Errorf("headers: %v", a.header)
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.secrets = append(c.r.secrets, out.EndKey)
	for _, token := range out.Tokens {
		c.r.secrets = append(c.r.secrets, token.AccessToken)
	}
	return out
}

// TestChild: it is begun as any task is, and is told and recorded with its path.
func TestChild(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	root := c.begin()
	child := c.child(root.Task.ID, beginBody)
	grandchild := c.child(child.Task.ID, beginBody)
	path := []string{root.Task.ID, child.Task.ID, grandchild.Task.ID}
	if !slices.Equal(grandchild.Task.Path, path) || grandchild.Task.Root != root.Task.ID || len(grandchild.Tokens) != 1 || grandchild.EndKey == "" || grandchild.EndKey == root.EndKey {
		t.Errorf("got %+v", grandchild)
	}
	seen := false
	for _, line := range r.lines("task.begun") {
		if line.Task == grandchild.Task.ID {
			seen = slices.Equal(line.TaskPath, path)
		}
	}
	if !seen {
		t.Error("the audit log does not have its begin with its path")
	}
	var receipt wire.Receipt
	a := c.end(root.Task.ID, "completed")
	if a.into(t, &receipt); receipt.SubTasks != 2 || receipt.Grants != 3 {
		t.Errorf("receipt %+v", receipt)
	}
	var task wire.Task
	c.get(taskPath(grandchild.Task.ID, "")).into(t, &task)
	if task.State != wire.StateCanceled || task.Cause != "parent" || !task.EndedAt.Equal(receipt.EndedAt) {
		t.Errorf("the grandchild is %+v", task)
	}
	// Its own end changes nothing, and its key is not its parent's.
	c.end(grandchild.Task.ID, "completed").into(t, &receipt)
	if receipt.State != wire.StateCanceled || receipt.Cause != "parent" {
		t.Errorf("receipt %+v", receipt)
	}
}

// TestParentsThatAreNone: a task of somebody else is as unknown as one that never was, and what is no ID.
func TestParentsThatAreNone(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	foreign := r.client("spiffe://prod/night").beginAs(`{"name":"n","purpose":"p"}`).Task.ID
	dead := c.begin().Task.ID
	orphan := c.child(dead, beginBody).Task.ID
	c.end(dead, "failed")
	withoutID := func(a answer) string {
		return strings.ReplaceAll(string(a.body), a.problem.RequestID, "")
	}
	unknown := c.post(taskPath(string(broker.NewTaskID(0)), "/children"), beginBody)
	for name, id := range map[string]string{
		"foreign": foreign, "malformed": "tsk_1", "upper case": strings.ToUpper(foreign), "another kind": string(broker.NewGrantID(0)),
		"no such shard": "tsk_99" + foreign[6:], "escaped": "%2e%2e", "of another shard": "tsk_01" + dead[6:],
	} {
		a := c.post(taskPath(id, "/children"), beginBody)
		c.refused(a, http.StatusNotFound, wire.ProblemNotFound)
		if withoutID(a) != withoutID(unknown) {
			t.Errorf("%s: %s; an unknown one: %s", name, a.body, unknown.body)
		}
	}
	for _, id := range []string{dead, orphan} {
		a := c.post(taskPath(id, "/children"), beginBody)
		c.refused(a, http.StatusGone, wire.ProblemTaskEnded)
		if want := map[string]string{dead: "failed", orphan: "canceled"}[id]; a.problem.State != want {
			t.Errorf("it says that its parent is %s; want %s", a.problem.State, want)
		}
	}
	c.refused(c.get(taskPath(dead, "/children")), http.StatusMethodNotAllowed, wire.ProblemMethodNotAllowed)
}

// TestCeilingOfAChild: what is not its parent's is refused by name, and leaves nothing behind; what it
// leaves open is its parent's.
func TestCeilingOfAChild(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	with := func(members string) string { return `{"name":"n","purpose":"p"` + members + `}` }
	payment, other := `{"type":"payment","max":5}`, `{"type":"payment","max":6}`
	both := c.beginAs(with(`,"authorization_details":[` + payment + `]`)).Task.ID // all of its registered ceiling
	orders := c.child(both, with(`,"audiences":["orders"]`)).Task
	if !slices.Equal(orders.Audiences, []string{"orders"}) || !slices.Equal(orders.Scopes, []string{"orders:read"}) {
		t.Errorf("one of two audiences, and no scopes: %+v", orders)
	}
	reading := c.child(both, with(`,"scopes":["orders:read"]`)).Task
	for _, same := range []wire.Task{c.child(both, with("")).Task, c.child(both, with(`,"audiences":["orders","files"]`)).Task} {
		if !slices.Equal(same.Audiences, []string{"files", "orders"}) || !slices.Equal(same.Scopes, []string{"files:write", "orders:read"}) || len(same.AuthorizationDetails) != 0 {
			t.Errorf("what its parent has: %+v", same)
		}
	}
	before := len(r.lines("task.begun"))
	for _, bad := range []struct{ parent, members, kind, names string }{
		{orders.ID, `,"audiences":["files"]`, "audience", "files"},
		{orders.ID, `,"audiences":["files","orders"]`, "audience", "files"},
		{orders.ID, `,"audiences":["ORDERS"]`, "audience", "ORDERS"},
		{orders.ID, `,"scopes":["files:write"]`, "scope", "files:write"},
		{orders.ID, `,"scopes":["orders:read","orders:write"]`, "scope", "orders:write"},
		{reading.ID, `,"audiences":["files"]`, "scope", "files"},
		{both, `,"authorization_details":[` + other + `]`, "authorization_details", "payment"},
		{orders.ID, `,"authorization_details":[` + payment + `]`, "authorization_details", "payment"}, // its parent has none
		{orders.ID, `,"tokens":[{"audience":"files"}]`, "audience", "files"},
	} {
		a := c.post(taskPath(bad.parent, "/children"), with(bad.members))
		c.refused(a, http.StatusForbidden, wire.ProblemScopeExceeded)
		if p := a.problem; !strings.Contains(p.Detail, bad.names) || p.Missing[bad.kind] == "" || p.Rule != "task/ceiling" || p.DecisionID == "" {
			t.Errorf("%s: %s", bad.members, a.body)
		}
	}
	if after := len(r.lines("task.begun")); after != before {
		t.Errorf("%d tasks were begun by refused requests", after-before)
	}
	c.child(both, with(`,"authorization_details":[`+payment+`],"tokens":[{"audience":"orders","authorization_details":[`+payment+`]}]`))
}

// TestDeadlineOfAChild is cut at its parent's, and so is every token.
func TestDeadlineOfAChild(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	parent := c.beginAs(`{"name":"n","purpose":"p","deadline_seconds":40}`).Task
	for members, cut := range map[string]bool{`"deadline_seconds":20`: false, `"deadline_seconds":86400`: true, `"lease_seconds":600`: true} {
		child := c.child(parent.ID, `{"name":"n","purpose":"p","tokens":[{"audience":"orders","ttl_seconds":900}],`+members+`}`)
		if got := child.Task.Deadline; cut && !got.Equal(parent.Deadline) || !cut && !got.Equal(child.Task.BegunAt.Add(20*time.Second)) {
			t.Errorf("%s: the deadline is %s; its parent's %s", members, got, parent.Deadline)
		}
		var grant wire.Grant
		if c.get("/v1/grants/"+child.Tokens[0].GrantID).into(t, &grant); grant.ExpiresAt.After(child.Task.Deadline) {
			t.Errorf("%s: a token outlives its task: %s, %s", members, grant.ExpiresAt, child.Task.Deadline)
		}
	}
}

// TestDepthOfATree has one as deep as it may be, and one deeper.
func TestDepthOfATree(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	at := c.begin().Task
	for len(at.Path) < broker.MaxDepth {
		at = c.child(at.ID, beginBody).Task
	}
	a := c.post(taskPath(at.ID, "/children"), beginBody)
	c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid)
	if a.problem.Field != "parent" {
		t.Errorf("got %s", a.body)
	}
	c.child(at.Path[broker.MaxDepth-2], beginBody)
}

// TestChildrenOfATask has as many as there may be, and one more; one that has ended makes room.
func TestChildrenOfATask(t *testing.T) {
	r := within(t, unhurried, crowded)
	c := r.client("spiffe://prod/crowd")
	root := c.begin().Task.ID
	const bare = `{"name":"n","purpose":"p"}`
	var last string
	for range broker.MaxChildren {
		last = c.child(root, bare).Task.ID
	}
	a := c.post(taskPath(root, "/children"), bare)
	c.refused(a, http.StatusTooManyRequests, wire.ProblemQuota)
	if !strings.Contains(a.problem.Detail, "1000 live children") || a.header.Get("Retry-After") == "" {
		t.Errorf("got %s", a.body)
	}
	c.child(last, bare) // another parent has room
	c.end(last, "completed")
	c.child(root, bare)
	c.refused(c.post(taskPath(root, "/children"), bare), http.StatusTooManyRequests, wire.ProblemQuota)
}

// TestRepeatedChild: a key stands for one child of one parent.
func TestRepeatedChild(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	root, other := c.begin().Task.ID, c.begin().Task.ID
	keyed := func(path string) answer {
		return c.send("POST", path, beginBody, func(r *http.Request) { r.Header.Set(wire.HeaderIdempotencyKey, "k1") })
	}
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var begun wire.BeginResponse
			if a := keyed(taskPath(root, "/children")); a.status == http.StatusCreated {
				a.into(t, &begun)
			} else {
				t.Errorf("%d %s", a.status, a.body)
			}
			ids[i] = begun.Task.ID
		})
	}
	wg.Wait()
	if slices.Sort(ids); len(slices.Compact(ids)) != 1 {
		t.Errorf("one key began %v", ids)
	}
	for _, path := range []string{wire.PathTasks, taskPath(other, "/children"), taskPath(ids[0], "/children")} {
		c.refused(keyed(path), http.StatusConflict, wire.ProblemIdempotencyMismatch)
	}
	c.end(root, "completed")
	c.refused(keyed(taskPath(root, "/children")), http.StatusGone, wire.ProblemTaskEnded)
}

// TestRateOfChildren is that of begins.
func TestRateOfChildren(t *testing.T) {
	at := time.Now()
	r := within(t, httpapi.Limits{IssueRate: 1, IssueBurst: 2}, func(c *server.Config) { c.Now = func() time.Time { return at } })
	c := r.client(reportID)
	root := c.begin().Task.ID
	child := c.child(root, beginBody).Task.ID
	a := c.post(taskPath(root, "/children"), beginBody)
	c.refused(a, http.StatusTooManyRequests, wire.ProblemRateLimited)
	retryAfter(t, a)
	if a := c.end(child, "completed"); a.status != http.StatusOK {
		t.Errorf("an end: %d %s", a.status, a.body)
	}
}

// node is a task of a random tree, with a token.
type node struct {
	begun wire.BeginResponse
	dead  bool
}

func (n node) under(id string) bool { return slices.Contains(n.begun.Task.Path, id) }

// TestP7_AnEndKillsExactlyItsSubtree: at a verifier, for look-ups and for what may still begin, whatever
// the tree and whichever of its tasks ends.
func TestP7_AnEndKillsExactlyItsSubtree(t *testing.T) {
	r := within(t, unhurried)
	v := r.verifier()
	c, peer := r.bearer(reportID)
	rapid.Check(t, func(rt *rapid.T) {
		tree := []node{{begun: c.begin()}}
		for range rapid.IntRange(1, 12).Draw(rt, "tasks") {
			parent := rapid.SampledFrom(tree).Draw(rt, "parent").begun.Task
			if len(parent.Path) < broker.MaxDepth {
				tree = append(tree, node{begun: c.child(parent.ID, beginBody)})
			}
		}
		for _, ended := range []node{rapid.SampledFrom(tree).Draw(rt, "ended"), rapid.SampledFrom(tree).Draw(rt, "then"), tree[0]} {
			id := ended.begun.Task.ID
			outcome := rapid.SampledFrom([]string{"completed", "failed", "canceled"}).Draw(rt, "outcome")
			if a := c.end(id, outcome); a.status != http.StatusOK {
				rt.Fatalf("end: %d %s", a.status, a.body)
			}
			for i := range tree {
				tree[i].dead = tree[i].dead || tree[i].under(id)
			}
			r.eventually("the end is heard of", func() bool {
				_, err := v.Verify(t.Context(), ended.begun.Tokens[0].AccessToken, peer)
				return errors.Is(err, verify.ErrRevoked)
			})
			for _, n := range tree {
				check(rt, c, v, peer, n)
			}
		}
	})
}

// check wants a task of the tree to be dead everywhere, or live everywhere.
func check(rt *rapid.T, c *caller, v *verify.Verifier, peer *verify.Peer, n node) {
	depth := len(n.begun.Task.Path)
	_, err := v.Verify(rt.Context(), n.begun.Tokens[0].AccessToken, peer)
	if n.dead != errors.Is(err, verify.ErrRevoked) || !n.dead && err != nil {
		rt.Fatalf("at depth %d, dead: %t; the verifier says %v", depth, n.dead, err)
	}
	var grant wire.Grant
	if c.get("/v1/grants/"+n.begun.Tokens[0].GrantID).into(c.r.t, &grant); grant.Live == n.dead || (grant.TaskState == wire.StateActive) == n.dead {
		rt.Fatalf("at depth %d, dead: %t; the look-up says %+v", depth, n.dead, grant)
	}
	want := map[bool]int{true: http.StatusGone, false: http.StatusOK}[n.dead]
	if a := c.post(taskPath(n.begun.Task.ID, "/tokens"), `{"audience":"orders"}`); a.status != want {
		rt.Fatalf("at depth %d, dead: %t; a further token: %d %s", depth, n.dead, a.status, a.body)
	}
}

// TestP7_NoChildSurvivesARace: however a begin and the end of what is above it meet, nothing that was
// handed out is alive afterwards.
func TestP7_NoChildSurvivesARace(t *testing.T) {
	const rounds, callers = 60, 2
	r := within(t, unhurried, crowded) // what is below an ended task counts until its lease is over
	v := r.verifier()
	c, peer := r.bearer("spiffe://prod/crowd")
	survivors, born := 0, 0
	for round := range rounds {
		root := c.begin()
		above := root.Task.ID
		if round%2 == 0 {
			above = c.child(above, beginBody).Task.ID
		}
		answers := make([]answer, callers)
		var wg sync.WaitGroup
		var ready atomic.Int32
		for i := range answers {
			wg.Go(func() {
				ready.Add(1)
				answers[i] = c.post(taskPath(above, "/children"), beginBody)
			})
		}
		for ready.Load() < callers {
			time.Sleep(time.Microsecond)
		}
		if a := c.end(root.Task.ID, "completed"); a.status != http.StatusOK {
			t.Fatalf("end: %d %s", a.status, a.body)
		}
		wg.Wait()
		for _, a := range answers {
			if a.status == http.StatusGone {
				continue
			}
			if a.status != http.StatusCreated {
				t.Fatalf("a child: %d %s", a.status, a.body)
			}
			var begun wire.BeginResponse
			a.into(t, &begun)
			born++
			var grant wire.Grant
			if c.get("/v1/grants/"+begun.Tokens[0].GrantID).into(t, &grant); grant.Live {
				survivors++
			}
			r.eventually("the verifier refuses it", func() bool {
				_, err := v.Verify(t.Context(), begun.Tokens[0].AccessToken, peer)
				return errors.Is(err, verify.ErrRevoked)
			})
		}
	}
	if survivors > 0 {
		t.Errorf("%d of the %d children that were begun in time live on", survivors, born)
	}
}
