package policy_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/policy"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	report = broker.WorkloadRegistration{
		ID: spiffeid.RequireFromString("spiffe://prod/report"), Owner: "team-fin",
		Ceiling: map[string]broker.Scopes{"files": {"files:write"}, "orders": {"orders:read", "orders:write"}},
	}
	orders = broker.AudienceRegistration{Name: "orders", Scopes: broker.Scopes{"orders:admin", "orders:read", "orders:write"}}
)

func decide(t *testing.T, ask broker.Ask) broker.Decision {
	t.Helper()
	d, err := policy.Ceiling{Revision: func() string { return "r1" }}.Decide(context.Background(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if d.ID == "" || d.Rule == "" || d.Detail == "" || d.Revision != "r1" {
		t.Errorf("decision does not explain itself: %+v", d)
	}
	return d
}

func TestBegin(t *testing.T) {
	for _, c := range []struct {
		name     string
		workload broker.WorkloadRegistration
		ask      broker.Ceiling
		want     broker.Ceiling // of an allowed one
		rule     string         // of a denied one
		missing  string
	}{
		{"empty is the registered ceiling", report, broker.Ceiling{}, broker.Ceiling{
			Audiences: broker.Audiences{"files", "orders"}, Scopes: broker.Scopes{"files:write", "orders:read", "orders:write"}}, "", ""},
		{"narrower", report, broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}},
			broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}}, "", ""},
		{"scopes follow audiences", report, broker.Ceiling{Audiences: broker.Audiences{"orders"}},
			broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read", "orders:write"}}, "", ""},
		{"foreign audience", report, broker.Ceiling{Audiences: broker.Audiences{"payroll"}}, broker.Ceiling{}, policy.RuleAudience, "audience"},
		{"foreign scope", report, broker.Ceiling{Scopes: broker.Scopes{"orders:admin", "orders:read"}}, broker.Ceiling{}, policy.RuleScope, "scope"},
		{"scope of another audience", report, broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"files:write"}}, broker.Ceiling{}, policy.RuleScope, "scope"},
		{"wildcard", report, broker.Ceiling{Scopes: broker.Scopes{"*"}}, broker.Ceiling{}, policy.RuleScope, "scope"},
		{"other case", report, broker.Ceiling{Scopes: broker.Scopes{"Orders:read"}}, broker.Ceiling{}, policy.RuleScope, "scope"},
		{"prefix", report, broker.Ceiling{Scopes: broker.Scopes{"orders:readwrite"}}, broker.Ceiling{}, policy.RuleScope, "scope"},
		{"no ceiling at all", broker.WorkloadRegistration{ID: report.ID}, broker.Ceiling{}, broker.Ceiling{}, policy.RuleNoCeiling, "ceiling"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(t, broker.Ask{Action: broker.ActionBegin, Workload: c.workload, Task: broker.Task{Ceiling: c.ask}})
			if c.rule == "" {
				if !d.Allowed || !slices.Equal(d.Ceiling.Audiences, c.want.Audiences) || !slices.Equal(d.Ceiling.Scopes, c.want.Scopes) {
					t.Errorf("got %+v, want %+v", d, c.want)
				}
				return
			}
			if d.Allowed || d.Rule != c.rule || d.Missing[c.missing] == "" {
				t.Errorf("got %+v, want a denial by %s that says which %s is missing", d, c.rule, c.missing)
			}
		})
	}
}

func TestIssue(t *testing.T) {
	ceiling := broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:admin", "orders:read"}}
	for _, c := range []struct {
		name    string
		ask     broker.Scopes
		want    broker.Scopes
		rule    string
		instead broker.Scopes
	}{
		{"none is what all agree on", nil, broker.Scopes{"orders:read"}, "", nil},
		{"exactly", broker.Scopes{"orders:read"}, broker.Scopes{"orders:read"}, "", nil},
		{"registered, but not in the task", broker.Scopes{"orders:write"}, nil, policy.RuleScope, nil},
		{"in the task, but not registered", broker.Scopes{"orders:admin", "orders:read"}, nil, policy.RuleScope, broker.Scopes{"orders:read"}},
		{"unknown to the audience", broker.Scopes{"files:write"}, nil, policy.RuleUnknown, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(t, broker.Ask{Action: broker.ActionIssue, Workload: report, Audience: orders, Task: broker.Task{Ceiling: ceiling}, Scopes: c.ask})
			if d.Allowed != (c.rule == "") || c.rule != "" && d.Rule != c.rule || !slices.Equal(d.Scopes, c.want) || !slices.Equal(d.Instead, c.instead) {
				t.Errorf("got %+v", d)
			}
		})
	}
	t.Run("nothing in common", func(t *testing.T) {
		d := decide(t, broker.Ask{Action: broker.ActionIssue, Workload: report, Audience: orders, Task: broker.Task{Ceiling: broker.Ceiling{Scopes: broker.Scopes{"files:write"}}}})
		if d.Allowed || d.Rule != policy.RuleNothingLeft {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("an action that nobody knows", func(t *testing.T) {
		if d := decide(t, broker.Ask{Action: "sudo", Workload: report}); d.Allowed {
			t.Errorf("got %+v", d)
		}
	})
}

func TestDetails(t *testing.T) {
	know := orders
	know.DetailTypes = []string{"customer", "payment"}
	details := broker.Details{`{"type":"customer"}`, `{"type":"refund"}`}
	begin := func(d broker.Details, audiences ...broker.AudienceRegistration) broker.Decision {
		return decide(t, broker.Ask{Action: broker.ActionBegin, Workload: report, Audiences: audiences, Task: broker.Task{Ceiling: broker.Ceiling{Details: d}}})
	}
	issue := func(d broker.Details, audience broker.AudienceRegistration) broker.Decision {
		return decide(t, broker.Ask{
			Action: broker.ActionIssue, Workload: report, Audience: audience, Details: d,
			Task: broker.Task{Ceiling: broker.Ceiling{Scopes: broker.Scopes{"orders:read"}, Details: details}},
		})
	}
	if d := begin(details[:1], orders, know); !d.Allowed || !slices.Equal(d.Ceiling.Details, details[:1]) {
		t.Errorf("a type that one audience knows: %+v", d)
	}
	if d := issue(details[:1], know); !d.Allowed {
		t.Errorf("a type that the audience knows: %+v", d)
	}
	for name, d := range map[string]broker.Decision{
		"begin: unknown to all": begin(details, orders, know), "begin: no audience": begin(details[:1]),
		"issue: unknown": issue(details[1:], know), "issue: to another": issue(details[:1], orders),
	} {
		if d.Allowed || d.Rule != policy.RuleDetail || d.Missing["authorization_details"] == "" {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// parties are for tasks that are done in the name of others: report's, and these.
var (
	reader = broker.WorkloadRegistration{
		ID: spiffeid.RequireFromString("spiffe://prod/reader"), Owner: "team-read",
		Ceiling: map[string]broker.Scopes{"orders": {"orders:admin", "orders:read"}, "payroll": {"payroll:read"}},
	}
	writer = broker.WorkloadRegistration{
		ID: spiffeid.RequireFromString("spiffe://prod/writer"), Owner: "team-write",
		Ceiling: map[string]broker.Scopes{"files": {"files:read"}, "orders": {"orders:write"}},
	}
	retired = broker.WorkloadRegistration{ID: spiffeid.RequireFromString("spiffe://prod/retired")}
)

// TestDelegate: who may join gets what both are registered for, and a refusal says whose registration it is.
func TestDelegate(t *testing.T) {
	for _, c := range []struct {
		name       string
		delegate   *broker.WorkloadRegistration
		delegators []broker.WorkloadRegistration
		ask, want  broker.Ceiling
		rule       string // of a denied one
		missing    string
		says       string
	}{
		{"what both may", &reader, nil, broker.Ceiling{}, broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}}, "", "", ""},
		{"what is named", &reader, nil, broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}},
			broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}}, "", "", ""},
		{"nobody who is known", nil, nil, broker.Ceiling{}, broker.Ceiling{}, policy.RuleDelegate, "to", "spiffe://prod/to"},
		{"one that has nothing", &retired, nil, broker.Ceiling{}, broker.Ceiling{}, policy.RuleNoCeiling, "ceiling", "spiffe://prod/retired"},
		{"an audience of the delegate alone", &reader, nil, broker.Ceiling{Audiences: broker.Audiences{"payroll"}}, broker.Ceiling{}, policy.RuleAudience, "audience", "spiffe://prod/report"},
		{"an audience of the delegator alone", &reader, nil, broker.Ceiling{Audiences: broker.Audiences{"files", "orders"}}, broker.Ceiling{}, policy.RuleAudience, "audience", "spiffe://prod/reader"},
		{"a scope of the delegate alone", &reader, nil, broker.Ceiling{Scopes: broker.Scopes{"orders:admin"}}, broker.Ceiling{}, policy.RuleScope, "scope", "spiffe://prod/report"},
		{"a scope of the delegator alone", &reader, nil, broker.Ceiling{Scopes: broker.Scopes{"orders:read", "orders:write"}}, broker.Ceiling{}, policy.RuleScope, "scope", "spiffe://prod/reader"},
		{"through another one", &reader, []broker.WorkloadRegistration{writer}, broker.Ceiling{}, broker.Ceiling{}, policy.RuleNothingLeft, "scope", "spiffe://prod/writer"},
		{"through one that is gone", &reader, []broker.WorkloadRegistration{retired}, broker.Ceiling{}, broker.Ceiling{}, policy.RuleNoCeiling, "ceiling", "spiffe://prod/retired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(t, broker.Ask{
				Action: broker.ActionDelegate, Workload: report, Delegators: c.delegators, Delegate: c.delegate, Ceiling: c.ask,
				To: spiffeid.RequireFromString("spiffe://prod/to"), Task: broker.Task{Ceiling: broker.Ceiling{Scopes: broker.Scopes{"looked:at:elsewhere"}}},
			})
			switch {
			case c.rule == "" && (!d.Allowed || !slices.Equal(d.Ceiling.Audiences, c.want.Audiences) || !slices.Equal(d.Ceiling.Scopes, c.want.Scopes)):
				t.Errorf("got %+v, want %+v", d, c.want)
			case c.rule != "" && (d.Allowed || d.Rule != c.rule || d.Missing[c.missing] == "" || !strings.Contains(d.Detail, c.says)):
				t.Errorf("got %+v, want a denial by %s that names %s and says which %s is missing", d, c.rule, c.says, c.missing)
			}
		})
	}
}

// TestNobodyGetsMoreInTheNameOfAnother than that one may have by itself at the same audience.
func TestNobodyGetsMoreInTheNameOfAnother(t *testing.T) {
	issue := func(scopes broker.Scopes, delegators ...broker.WorkloadRegistration) broker.Decision {
		return decide(t, broker.Ask{
			Action: broker.ActionIssue, Workload: report, Delegators: delegators, Audience: orders, Scopes: scopes,
			Task: broker.Task{Ceiling: broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:admin", "orders:read", "orders:write"}}},
		})
	}
	if d := issue(nil, reader); !d.Allowed || d.Scopes.String() != "orders:read" {
		t.Errorf("what both may: %+v", d)
	}
	for name, d := range map[string]broker.Decision{
		"the delegator may not": issue(broker.Scopes{"orders:write"}, reader), "the presenter may not": issue(broker.Scopes{"orders:admin"}, reader),
		"the delegator is gone": issue(nil, retired), "one of two may not": issue(broker.Scopes{"orders:read"}, reader, writer), "nothing is left": issue(nil, reader, writer),
	} {
		if d.Allowed || len(d.Missing) == 0 {
			t.Errorf("%s: %+v", name, d)
		}
	}
	begin := func(scopes broker.Scopes, delegators ...broker.WorkloadRegistration) broker.Decision {
		return decide(t, broker.Ask{Action: broker.ActionBegin, Workload: report, Delegators: delegators, Task: broker.Task{Ceiling: broker.Ceiling{Scopes: scopes}}})
	}
	if d := begin(nil, reader); !d.Allowed || d.Ceiling.Scopes.String() != "orders:read" || len(d.Ceiling.Audiences) != 1 {
		t.Errorf("a task of what both may: %+v", d)
	}
	for name, d := range map[string]broker.Decision{"more": begin(broker.Scopes{"orders:write"}, reader), "gone": begin(nil, reader, retired)} {
		if d.Allowed || len(d.Missing) == 0 {
			t.Errorf("a task, %s: %+v", name, d)
		}
	}
}

// TestNeverBeyond is the property behind the tables: what is granted is within what was asked for,
// the registration, those of the delegators, the audience and the task.
func TestNeverBeyond(t *testing.T) {
	scopes := rapid.Custom(func(t *rapid.T) broker.Scopes {
		list := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}), 0, 5, rapid.ID[string]).Draw(t, "scopes")
		set, err := broker.ParseScopes(list)
		if err != nil {
			t.Fatal(err)
		}
		return set
	})
	rapid.Check(t, func(t *rapid.T) {
		registered, known, task, asked := scopes.Draw(t, "registered"), scopes.Draw(t, "known"), scopes.Draw(t, "task"), scopes.Draw(t, "asked")
		most := registered.Intersect(known).Intersect(task)
		var delegators []broker.WorkloadRegistration
		for range rapid.IntRange(0, 3).Draw(t, "delegators") {
			may := scopes.Draw(t, "a delegator's")
			most = most.Intersect(may)
			delegators = append(delegators, broker.WorkloadRegistration{Ceiling: map[string]broker.Scopes{"x": may}})
		}
		d, err := policy.Ceiling{}.Decide(context.Background(), broker.Ask{
			Action: broker.ActionIssue, Scopes: asked, Delegators: delegators,
			Workload: broker.WorkloadRegistration{Ceiling: map[string]broker.Scopes{"x": registered}},
			Audience: broker.AudienceRegistration{Name: "x", Scopes: known},
			Task:     broker.Task{Ceiling: broker.Ceiling{Scopes: task}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Scopes.Minus(most)) > 0 || len(asked) > 0 && len(d.Scopes.Minus(asked)) > 0 {
			t.Fatalf("granted %v of %v, with %v allowed", d.Scopes, asked, most)
		}
		if within := len(asked.Minus(most)) == 0 && len(most) > 0; d.Allowed != within {
			t.Fatalf("allowed is %v for %v of %v", d.Allowed, asked, most)
		}
	})
}
