package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// seed begins a task in the store, as no policy would let it, with a grant for each of the audiences.
func (h *harness) seed(workload, name string, edit func(*broker.GrantRequest)) (broker.TaskID, []broker.GrantID) {
	h.t.Helper()
	req := broker.GrantRequest{
		Workload: spiffeid.RequireFromString(workload), Task: broker.NewTaskID(0), Control: 1 << 40, // decided on the newest list
		Begin: &broker.Beginning{
			Name: name, Purpose: "a test", Lease: time.Minute, Deadline: time.Hour,
			Ceiling: broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}},
		},
	}
	if edit != nil {
		edit(&req)
	}
	for _, audience := range req.Begin.Ceiling.Audiences {
		req.Grants = append(req.Grants, broker.Asked{
			ID: broker.NewGrantID(req.Task.Shard()), Audience: audience, Scopes: req.Begin.Ceiling.Scopes, Life: time.Minute,
		})
	}
	reply, err := h.store.Grant(context.Background(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	var grants []broker.GrantID
	for _, g := range reply.Grants {
		grants = append(grants, g.ID)
	}
	return reply.Task.ID, grants
}

// walk lists all pages, and checks that each is within its size.
func (h *harness) walk(req broker.ListRequest) (names []string, pages int) {
	h.t.Helper()
	for {
		page, err := h.ListTasks(context.Background(), req)
		if err != nil {
			h.t.Fatal(err)
		}
		if size := req.Size; size != 0 && len(page.Tasks) > size {
			h.t.Fatalf("a page of %d has %d", size, len(page.Tasks))
		}
		for _, task := range page.Tasks {
			names = append(names, task.Name)
		}
		pages++
		if req.Cursor = page.Next; req.Cursor == "" {
			return names, pages
		}
	}
}

// Each member of a filter finds what it names, in tasks and in grants, and all members together what each of them does.
func TestFilters(t *testing.T) {
	inBubble(t, func(h *harness) {
		const fin, agent = "spiffe://prod/batch/night", "spiffe://partner/agent"
		root, rootGrants := h.seed("spiffe://prod/report", "root", func(r *broker.GrantRequest) {
			r.Begin.Labels = map[string]string{"env": "prod", "team": "a"}
			r.Begin.Ref = broker.TaskRef{Kind: "k8s/job", ID: "8e1f", URL: "https://k8s.example/8e1f"}
		})
		child, childGrants := h.seed("spiffe://prod/report", "child", func(r *broker.GrantRequest) {
			r.Begin.Parent, r.Task = root, broker.NewTaskID(root.Shard())
			r.Begin.Ceiling = broker.Ceiling{Audiences: broker.Audiences{"files"}, Scopes: broker.Scopes{"files:write"}}
		})
		time.Sleep(10 * time.Second)
		late := time.Now()
		h.seed(fin, "night", func(r *broker.GrantRequest) { r.Begin.Labels = map[string]string{"env": "prod"} })
		h.seed(agent, "agent", func(r *broker.GrantRequest) {
			r.Begin.Ceiling.Audiences = broker.Audiences{"files", "orders"}
			r.Begin.Ceiling.Scopes = broker.Scopes{"orders:read", "orders:write"}
		})
		h.seed("spiffe://other/agent", "acting", func(r *broker.GrantRequest) {
			r.Begin.Delegators = []spiffeid.ID{spiffeid.RequireFromString(fin)}
		})
		for name, test := range map[string]struct {
			filter        broker.Filter
			tasks, grants string // by the names of the tasks
		}{
			"nothing":                         {broker.Filter{}, "acting agent child night root", "acting agent agent child night root"},
			"a workload, also as a delegator": {broker.Filter{Workloads: []string{fin}}, "acting night", "acting night"},
			"all below":                       {broker.Filter{Workloads: []string{"spiffe://prod/*"}}, "acting child night root", "acting child night root"},
			"a whole segment":                 {broker.Filter{Workloads: []string{"spiffe://prod/rep/*"}}, "", ""},
			"two workloads":                   {broker.Filter{Workloads: []string{agent, "spiffe://prod/report"}}, "agent child root", "agent agent child root"},
			"an owner":                        {broker.Filter{Owners: []string{"team-fin"}}, "acting child night root", "acting child night root"},
			"an owner, and a workload":        {broker.Filter{Owners: []string{"team-fin"}, Workloads: []string{"spiffe://prod/batch/*"}}, "acting night", "acting night"},
			"nobody's":                        {broker.Filter{Owners: []string{"team-x"}}, "", ""},
			"an audience":                     {broker.Filter{Audiences: []string{"files"}}, "agent child", "agent child"},
			"two audiences":                   {broker.Filter{Audiences: []string{"files", "orders"}}, "acting agent child night root", "acting agent agent child night root"},
			"a scope":                         {broker.Filter{Scopes: []string{"orders:write"}}, "agent", "agent agent"},
			"a name":                          {broker.Filter{Names: []string{"root", "night", "none"}}, "night root", "night root"},
			"a label":                         {broker.Filter{Labels: map[string]string{"env": "prod"}}, "night root", "night root"},
			"two labels":                      {broker.Filter{Labels: map[string]string{"env": "prod", "team": "a"}}, "root", "root"},
			"a ref":                           {broker.Filter{Ref: broker.TaskRef{Kind: "k8s/job", ID: "8e1f"}}, "root", "root"},
			"a root":                          {broker.Filter{Root: root}, "child root", "child root"},
			"no root":                         {broker.Filter{Root: child}, "", ""},
			"a task":                          {broker.Filter{Tasks: []broker.TaskID{root}}, "child root", "child root"},
			"tasks below each other":          {broker.Filter{Tasks: []broker.TaskID{root, child}}, "child root", "child root"},
			"the same task twice":             {broker.Filter{Tasks: []broker.TaskID{child, child}}, "child", "child"},
			"grants":                          {broker.Filter{Grants: append(slices.Clone(rootGrants), childGrants...)}, "-", "child root"},
			"no such grant":                   {broker.Filter{Grants: []broker.GrantID{broker.NewGrantID(0)}}, "-", ""},
			"what is old":                     {broker.Filter{IssuedBefore: late}, "-", "child root"},
			"all that fits, and one not":      {broker.Filter{Root: root, Audiences: []string{"files"}, Names: []string{"root"}}, "", ""},
			"all that fits":                   {broker.Filter{Root: root, Audiences: []string{"files"}, Names: []string{"child"}, Workloads: []string{"spiffe://prod/*"}, Owners: []string{"team-fin"}}, "child", "child"},
		} {
			if test.tasks == "-" {
				_, err := h.ListTasks(context.Background(), broker.ListRequest{Filter: test.filter})
				want(t, err, broker.ErrInvalid)
			} else if got, _ := h.walk(broker.ListRequest{Filter: test.filter}); sorted(got) != test.tasks {
				t.Errorf("%s: tasks are %q, want %q", name, sorted(got), test.tasks)
			}
			page, err := h.ListGrants(context.Background(), broker.ListRequest{Filter: test.filter})
			var got []string
			for _, s := range page.Grants {
				got = append(got, s.Task.Name)
			}
			if err != nil || sorted(got) != test.grants || page.Next != "" {
				t.Errorf("%s: grants are %q, want %q; %v", name, sorted(got), test.grants, err)
			}
		}
	})
}

func sorted(names []string) string {
	slices.Sort(names)
	return strings.Join(names, " ")
}

// A walk through all pages has each task once, whatever the size of the pages, the filter, and where in the store's own
// pages they end; a page that has less for what it looked at goes on.
func TestPagesHaveEachOnce(t *testing.T) {
	inBubble(t, func(h *harness) {
		const many = 2*broker.MaxPage + 3
		var all, some []string
		for i := range many {
			name := fmt.Sprintf("t%04d", i)
			h.seed("spiffe://prod/report", name, func(r *broker.GrantRequest) {
				if i%3 == 0 {
					r.Begin.Labels = map[string]string{"third": "yes"}
					some = append(some, name)
				}
			})
			all = append(all, name)
		}
		for _, size := range []int{0, 7, 50, broker.MaxPage} {
			if got, _ := h.walk(broker.ListRequest{Size: size}); sorted(got) != sorted(all) {
				t.Errorf("pages of %d have %d tasks of %d", size, len(got), many)
			}
			got, pages := h.walk(broker.ListRequest{Size: size, Filter: broker.Filter{Labels: map[string]string{"third": "yes"}}})
			if sorted(got) != sorted(some) || size != 0 && pages > len(some)/size+4 {
				t.Errorf("%d filtered pages of %d have %d tasks of %d", pages, size, len(got), len(some))
			}
		}
	})
}

// What is dead by a selector is not shown as live, and states are filters.
func TestStates(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx := context.Background()
		h.seed("spiffe://prod/report", "denied", func(r *broker.GrantRequest) { r.Begin.Ceiling.Audiences = broker.Audiences{"files"} })
		h.seed("spiffe://prod/report", "live", nil)
		over := h.begin(report, withToken)
		h.end(report, over.Task.ID)
		if _, err := h.Revoke(ctx, broker.Revocation{Selector: broker.Selector{Audience: "files"}, Actor: "ada", Reason: "a test"}); err != nil {
			t.Fatal(err)
		}
		h.seed("spiffe://prod/report", "after", func(r *broker.GrantRequest) { r.Begin.Ceiling.Audiences = broker.Audiences{"files"} })
		h.denied("files")
		for want, req := range map[string]broker.ListRequest{
			"after live":               {Live: true},
			"denied export":            {Dead: true},
			"after denied export live": {Live: true, Dead: true},
		} {
			page, err := h.ListGrants(ctx, req)
			var got []string
			for _, s := range page.Grants {
				got = append(got, s.Task.Name)
			}
			if err != nil || sorted(got) != want {
				t.Errorf("%v: %q, %v; want %q", req, sorted(got), err, want)
			}
		}
		for want, states := range map[string][]broker.State{
			"after denied live": {broker.Active}, "export": {broker.Completed, broker.Failed}, "": {broker.Lapsed},
			"after denied export live": {broker.Active, broker.Completed},
		} {
			if got, _ := h.walk(broker.ListRequest{States: states}); sorted(got) != want {
				t.Errorf("%v: %q; want %q", states, sorted(got), want)
			}
		}
		_, err := h.ListTasks(ctx, broker.ListRequest{States: []broker.State{"live"}})
		want(t, err, broker.ErrInvalid)
	})
}

// A cursor is good for its own list alone, at every replica that shares the secret, and for as long as there is the data.
func TestCursors(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx := context.Background()
		for range 3 {
			h.seed("spiffe://prod/report", "x", nil)
		}
		filter := broker.Filter{Workloads: []string{"spiffe://prod/report"}}
		first, err := h.ListTasks(ctx, broker.ListRequest{Filter: filter, Size: 1})
		if err != nil || len(first.Tasks) != 1 || first.Next == "" {
			t.Fatalf("%+v, %v", first, err)
		}
		second, err := h.ListTasks(ctx, broker.ListRequest{Filter: filter, Size: 2, Cursor: first.Next})
		if err != nil || len(second.Tasks) != 2 || second.Next != "" {
			t.Errorf("another size of pages: %+v, %v", second, err)
		}
		flipped := []byte(first.Next)
		flipped[len(flipped)/2] ^= 1
		for name, req := range map[string]broker.ListRequest{
			"another filter":   {Filter: broker.Filter{Workloads: []string{"spiffe://prod/*"}}, Cursor: first.Next},
			"no filter":        {Cursor: first.Next},
			"another state":    {Filter: filter, States: []broker.State{broker.Active}, Cursor: first.Next},
			"a bit of it":      {Filter: filter, Cursor: string(flipped)},
			"half of it":       {Filter: filter, Cursor: first.Next[:len(first.Next)/2]},
			"more than it":     {Filter: filter, Cursor: first.Next + "\n"},
			"the store's own":  {Filter: filter, Cursor: string(first.Tasks[0].ID)},
			"far too much":     {Filter: filter, Cursor: strings.Repeat("a", broker.MaxCursor+1)},
			"page_size":        {Filter: filter, Size: broker.MaxPage + 1},
			"less than a page": {Filter: filter, Size: -1},
		} {
			_, err := h.ListTasks(ctx, req)
			if bad := (*broker.Invalid)(nil); !errors.As(err, &bad) || bad.Field != "cursor" && bad.Field != "page_size" {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err = h.ListGrants(ctx, broker.ListRequest{Filter: filter, Cursor: first.Next})
		want(t, err, broker.ErrInvalid)
		other := newHarness(h.t, h.store, nil) // with a secret of its own
		_, err = other.ListTasks(ctx, broker.ListRequest{Filter: filter, Cursor: first.Next})
		want(t, err, broker.ErrInvalid)
	})
}

// What a filter may not say is refused with the member that is wrong.
func TestFilterBounds(t *testing.T) {
	many := make([]string, broker.MaxFilterValues+1)
	for i := range many {
		many[i] = fmt.Sprintf("a%d", i)
	}
	if _, err := (broker.Filter{Audiences: many[1:]}).Check(); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
	long := make([]string, 9)
	for i := range long {
		long[i] = strings.Repeat("x", 1000-i)
	}
	if _, err := (broker.Filter{Names: long[1:]}).Check(); err != nil {
		t.Errorf("as long as may be: %v", err)
	}
	for _, subject := range []string{"spiffe://prod", "spiffe://prod/", "spiffe://PROD/*", "spiffe://prod*", "spiffe://*", "/*", "spiffe://prod/a/", "spiffe://prod/a*", "spiffe://prod/*/*", "*"} {
		_, err := (broker.Filter{Workloads: []string{subject}}).Check()
		if want(t, err, broker.ErrInvalid); (broker.Selector{Subject: subject}).Validate() == nil {
			t.Errorf("%s is the subject of a selector", subject)
		}
	}
	for field, f := range map[string]broker.Filter{
		"audience": {Audiences: many},
		"workload": {Workloads: []string{"spiffe://prod/*/x"}},
		"owner":    {Owners: []string{""}},
		"scope":    {Scopes: []string{"a\nb"}},
		"task":     {Tasks: []broker.TaskID{"tsk_1"}},
		"grant":    {Grants: []broker.GrantID{broker.GrantID(broker.NewTaskID(0))}},
		"root":     {Root: "x"},
		"ref":      {Ref: broker.TaskRef{Kind: "K8S", ID: "1"}},
		"label":    {Labels: map[string]string{"A": "b"}},
		"all":      {All: true, Names: []string{"x"}},
		"selector": {Names: long},
	} {
		_, err := f.Check()
		if bad := (*broker.Invalid)(nil); !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// What the inventory does not have is named, and what it has is not.
func TestUnknown(t *testing.T) {
	inBubble(t, func(h *harness) {
		known := broker.Filter{
			Workloads: []string{"spiffe://prod/report", "spiffe://prod/batch/*", "spiffe://prod/*"}, Owners: []string{"team-fin"}, Audiences: []string{"files", "orders"},
		}
		if got := h.Unknown(known); got != nil {
			t.Errorf("unknown are %q", got)
		}
		got := h.Unknown(broker.Filter{
			Workloads: []string{"spiffe://prod/batch", "spiffe://prod/repor", "spiffe://prod/report/*"}, Owners: []string{"team-fin", "team-fun"}, Risks: []string{"hihg"}, Audiences: []string{"ordres"},
		})
		if want := "workload=spiffe://prod/batch workload=spiffe://prod/repor workload=spiffe://prod/report/* owner=team-fun risk=hihg audience=ordres"; strings.Join(got, " ") != want {
			t.Errorf("unknown are %q", got)
		}
	})
}

// A tree has the task and all below it, with their own live grants.
func TestTree(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx := context.Background()
		root := h.begin(report, withToken)
		below := func(parent broker.TaskID) func(*broker.BeginRequest) {
			return func(r *broker.BeginRequest) { r.Parent, r.Tokens = parent, nil }
		}
		child := h.begin(report, below(root.Task.ID))
		h.issue(report, child.Task.ID)
		h.issue(report, child.Task.ID)
		over := h.begin(report, below(child.Task.ID))
		h.issue(report, over.Task.ID)
		h.end(report, over.Task.ID)
		h.begin(report, withToken) // another tree
		live := map[broker.TaskID]int{}
		cursor := ""
		for {
			page, next, err := h.Tree(ctx, root.Task.ID, 2, cursor)
			if err != nil {
				t.Fatal(err)
			}
			for _, task := range page {
				live[task.ID] = task.LiveGrants
			}
			if cursor = next; cursor == "" {
				break
			}
		}
		if len(live) != 3 || live[root.Task.ID] != 1 || live[child.Task.ID] != 2 || live[over.Task.ID] != 0 {
			t.Errorf("the tree is %v", live)
		}
		_, _, err := h.Tree(ctx, broker.NewTaskID(0), 0, "")
		want(t, err, broker.ErrNotFound)
	})
}

// Whoever watches gets all there is after each look, at most WatchEvery apart, and something at least each FollowBeat.
func TestWatchLists(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx, cancel := context.WithCancelCause(context.Background())
		h.seed("spiffe://prod/report", "first", nil)
		type look struct {
			names string
			at    time.Time
		}
		var looks []look
		var quiet time.Duration
		last := time.Now()
		done := make(chan error, 1)
		go func() {
			done <- h.WatchTasks(ctx, broker.Operator{Name: "viewer"}, broker.ListRequest{States: []broker.State{broker.Active}}, func(tasks []broker.Task, beat bool) error {
				quiet, last = max(quiet, time.Since(last)), time.Now()
				var names []string
				for _, task := range tasks {
					names = append(names, task.Name)
				}
				if !beat {
					looks = append(looks, look{sorted(names), time.Now()})
				}
				return nil
			})
		}()
		time.Sleep(1500 * time.Millisecond)
		id, _ := h.seed("spiffe://prod/report", "second", nil)
		time.Sleep(time.Second)
		h.end(report, id)
		time.Sleep(time.Second)
		cancel(errors.New("enough"))
		if err := <-done; err == nil || err.Error() != "enough" {
			t.Error(err)
		}
		var names []string
		for i, l := range looks {
			names = append(names, l.names)
			if i > 0 && l.at.Sub(looks[i-1].at) < broker.WatchEvery {
				t.Errorf("looks are %s apart", l.at.Sub(looks[i-1].at))
			}
		}
		if got := strings.Join(names, ","); got != "first,first,first second,first" {
			t.Errorf("looks: %s", got)
		}
		if quiet > broker.FollowBeat {
			t.Errorf("nothing was heard for %s", quiet)
		}
	})
}

// Watchers are bounded in number, and what they watch in items; they are sent away when the replica goes.
func TestWatchBounds(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 2*broker.MaxWatchers)
		watch := func(who string) {
			go func() {
				done <- h.WatchGrants(ctx, broker.Operator{Name: who}, broker.ListRequest{}, func([]broker.GrantStatus, bool) error { return nil })
			}()
		}
		for i := range broker.MaxWatchers / broker.MaxWatchersPerOperator {
			for range broker.MaxWatchersPerOperator {
				watch(fmt.Sprintf("op%d", i))
			}
			h.denied("orders") // waits
			if len(done) > 0 {
				t.Fatalf("a watcher was refused: %v", <-done)
			}
			watch(fmt.Sprintf("op%d", i))
			want(t, <-done, broker.ErrCrowded)
		}
		watch("another")
		want(t, <-done, broker.ErrCrowded)
		h.Dismiss()
		for range broker.MaxWatchers {
			want(t, <-done, broker.ErrLeaving)
		}
		watch("late")
		want(t, <-done, broker.ErrLeaving)
	})
}

func TestWatchHasTooMuch(t *testing.T) {
	inBubble(t, func(h *harness) {
		for range broker.MaxWatched {
			h.seed("spiffe://prod/report", "x", nil)
		}
		enough := errors.New("enough")
		watch := func() error {
			return h.WatchTasks(context.Background(), broker.Operator{Name: "viewer"}, broker.ListRequest{}, func(tasks []broker.Task, _ bool) error {
				if len(tasks) != broker.MaxWatched {
					t.Errorf("%d tasks", len(tasks))
				}
				return enough
			})
		}
		want(t, watch(), enough)
		h.seed("spiffe://prod/report", "x", nil)
		want(t, watch(), broker.ErrInvalid)
	})
}
