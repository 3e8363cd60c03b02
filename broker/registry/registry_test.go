package registry_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/registry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const good = `
audiences:
  - name: orders
    owner: team-shop
    hosts: ["orders.internal", "127.0.0.1:8081"]
    scopes: [orders:write, orders:read]
    servers: [spiffe://prod/orders]
    details: [payment, customer]
    max_life: 5m
  - name: legacy
    owner: team-shop
    scopes: [legacy:read]
    binding: none
workloads:
  - id: spiffe://prod/report
    owner: team-fin
    purpose: nightly exports
    risk: low
    review_by: 2027-01-31
    ceiling:
      orders: [orders:read]
`

func TestParse(t *testing.T) {
	r, err := registry.Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.Workload(spiffeid.RequireFromString("spiffe://prod/report"))
	if err != nil {
		t.Fatal(err)
	}
	if w.Owner != "team-fin" || !w.Ceiling["orders"].Contains("orders:read") || w.MaxLife != broker.MaxTokenLife ||
		w.MaxTasks != registry.DefaultMaxTasks || w.MaxGrants != registry.DefaultMaxGrants || w.ReviewBy.Year() != 2027 {
		t.Errorf("got %+v", w)
	}
	a, err := r.Audience("orders")
	if err != nil {
		t.Fatal(err)
	}
	if a.Scopes.String() != "orders:read orders:write" || len(a.Servers) != 1 || !slices.Equal(a.DetailTypes, []string{"customer", "payment"}) || a.MaxLife != 5*time.Minute || a.Binding != broker.BindCertificate {
		t.Errorf("got %+v", a)
	}
	if a, _ := r.Audience("legacy"); a.Binding != broker.BindNone {
		t.Errorf("got %+v", a)
	}
	if _, err := r.Workload(spiffeid.RequireFromString("spiffe://prod/other")); err != broker.ErrUnregistered {
		t.Errorf("unknown workload: %v", err)
	}
	if _, err := r.Audience("Orders"); err != broker.ErrNotFound {
		t.Errorf("unknown audience: %v", err)
	}
	other, err := registry.Parse([]byte(good + "\n# a comment\n"))
	if err != nil || other.Revision() == r.Revision() || len(r.Revision()) != 16 {
		t.Errorf("revisions %q and %q, %v", r.Revision(), other.Revision(), err)
	}
}

// TestRefused has the mistakes that people make, and a part of what they must be told.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct{ old, new, say string }{
		"misspelt field":              {"owner: team-fin", "ownr: team-fin", "ownr"},
		"no owner":                    {"    owner: team-fin\n", "", "owner is missing"},
		"no purpose":                  {"    purpose: nightly exports\n", "", "purpose is missing"},
		"no owner of an audience":     {"    owner: team-shop\n    hosts", "    hosts", "owner is missing"},
		"duplicate member":            {"risk: low", "risk: low\n    risk: high", "risk"},
		"wrong type":                  {"owner: team-fin", "owner: [a]", "[16:"},
		"not a SPIFFE ID":             {"spiffe://prod/report", "prod/report", "not a SPIFFE ID"},
		"upper-case trust domain":     {"spiffe://prod/report", "spiffe://Prod/report", "not a SPIFFE ID"},
		"no path":                     {"spiffe://prod/report", "spiffe://prod", "has no path"},
		"server without a path":       {"[spiffe://prod/orders]", "[spiffe://prod]", "has no path"},
		"audience not registered":     {"      orders: [orders:read]", "      order: [orders:read]", `"order" is not registered`},
		"scope unknown to audience":   {"      orders: [orders:read]", "      orders: [orders:admin]", `does not know the scope "orders:admin"`},
		"empty scopes in the ceiling": {"      orders: [orders:read]", "      orders: []", "has no scopes"},
		"scope with a space":          {"[orders:write, orders:read]", "[\"orders: read\"]", "not allowed"},
		"no scopes":                   {"    scopes: [legacy:read]\n", "", "scopes is missing"},
		"unknown binding":             {"binding: none", "binding: bearer", "certificate, identity or none"},
		"life over the cap":           {"max_life: 5m", "max_life: 15m1s", "between"},
		"life under the floor":        {"max_life: 5m", "max_life: 1s", "between"},
		"life that is no duration":    {"max_life: 5m", "max_life: 300", "duration"},
		"unknown risk":                {"risk: low", "risk: huge", "risk"},
		"review_by that is no day":    {"review_by: 2027-01-31", "review_by: soon", "2027-01-31"},
		"host with a scheme":          {"orders.internal", "https://orders.internal", "leave out scheme"},
		"negative quota":              {"risk: low", "max_tasks: -1", "positive"},
		"detail type twice":           {"details: [payment, customer]", "details: [payment, payment]", "duplicate"},
		"detail type with a space":    {"details: [payment, customer]", "details: [\"pay ment\"]", "not allowed"},
		"not YAML":                    {"audiences:", "audiences: [", "registry"},
		"a tag for a list":            {"scopes: [legacy:read]", "scopes: !x 0", "registry: [12:13] there is a tag"},
		"a tab":                       {"    owner: team-fin", "\towner: team-fin", `registry: [16:1] found character '\t' that cannot start any token; indent with spaces`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.new, 1)
			if text == good {
				t.Fatal("the mistake is not in the text")
			}
			_, err := registry.Parse([]byte(text))
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v, want something with %q", err, c.say)
			}
		})
	}
	for name, c := range map[string]struct{ text, say string }{
		"empty":             {"", "the file is empty"},
		"only a comment":    {"# nothing\n", "the file is empty"},
		"a second document": {good + "\n---\nworkloads: []\n", "second document"},
		"nonsense behind":   {good + "\n---\n: [", "registry: "},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := registry.Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v", err)
			}
		})
	}
	for name, twice := range map[string]string{
		"audience twice": "audiences: [{name: a, owner: o, scopes: [s]}, {name: a, owner: o, scopes: [s]}]",
		"workload twice": "workloads: [{id: 'spiffe://p/a', owner: o, purpose: p}, {id: 'spiffe://p/a', owner: o, purpose: p}]",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := registry.Parse([]byte(twice)); err == nil || !strings.Contains(err.Error(), "duplicate") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestEveryUnknownKey: all of them are reported at once, each on one line with its place.
func TestEveryUnknownKey(t *testing.T) {
	text := strings.NewReplacer("owner: team-shop\n    hosts", "ownr: team-shop\n    hosts", "risk: low", "risc: low", "workloads:", "workload: []\nworkloads:").Replace(good)
	_, err := registry.Parse([]byte(text))
	want := []string{
		"registry: [4:5] audiences[0].ownr is not a key; there are binding, details, hosts, ",
		"registry: [14:1] workload is not a key; there are audiences, sources, workloads",
		"registry: [19:5] workloads[0].risc is not a key; there are boundary, ceiling, ",
	}
	got := strings.Split(fmt.Sprint(err), "\n")
	if len(got) != len(want) {
		t.Fatalf("got %v", err)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("%q; want %q", got[i], want[i])
		}
	}
	const merged = "audiences:\n- name: a\n  <<: {owner: o, scopes: [s]}\n"
	if _, err := registry.Parse([]byte(merged)); err != nil {
		t.Errorf("a mapping that merges another one: %v", err)
	}
	if _, err := registry.Parse([]byte(strings.Replace(merged, "owner: o", "owner: o, ownr: o", 1))); err == nil || !strings.Contains(err.Error(), "ownr") {
		t.Errorf("a key that is not known in what is merged: %v", err)
	}
}

func TestByteOrderMark(t *testing.T) {
	if _, err := registry.Parse([]byte("\ufeff" + good)); err != nil {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.yaml")
	if _, err := registry.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Load(path); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(good+strings.Repeat("#", registry.MaxFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Load(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("large file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("workloads: [{}]")
	f.Add("a: &a [*a]")
	f.Add("workloads:\n !0\n0000000")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := registry.Parse([]byte(text))
		if (r == nil) == (err == nil) {
			t.Fatalf("registry %v with error %v", r, err)
		}
	})
}
