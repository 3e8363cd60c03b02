package registry_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/registry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var digest = sha256.Sum256([]byte("a token"))

var withSources = good + `
sources:
  - name: cluster
    owner: team-platform
    contact: platform@example.org
    id: spiffe://prod/watcher
    kinds: [k8s/job, k8s/pod]
    workloads: [spiffe://prod/report, spiffe://prod/batch/*]
  - name: forge
    owner: team-build
    source: ["https://forge.example/a", "/runs"]
    token_sha256: ` + hex.EncodeToString(digest[:]) + `
    kinds: [ci/run]
    workloads: ["spiffe://prod/*"]
`

func TestSources(t *testing.T) {
	r, err := registry.Parse([]byte(withSources))
	if err != nil {
		t.Fatal(err)
	}
	watcher := spiffeid.RequireFromString("spiffe://prod/watcher")
	s, err := r.Source(watcher)
	if err != nil || s.Name != "cluster" || s.Contact != "platform@example.org" || !slices.Equal(s.URIs, []string{"spiffe://prod/watcher"}) || len(s.Kinds) != 2 || len(s.Workloads) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	forge, err := r.SourceByToken(digest)
	if err != nil || forge.Name != "forge" || !forge.ID.IsZero() || len(forge.URIs) != 2 {
		t.Errorf("%+v, %v", forge, err)
	}
	for name, none := range map[string]error{
		"another ID":                        second(r.Source(spiffeid.RequireFromString("spiffe://prod/report"))),
		"no ID, as one with a token has":    second(r.Source(spiffeid.ID{})),
		"another token":                     second(r.SourceByToken(sha256.Sum256([]byte("another")))),
		"no token, as one with an ID has":   second(r.SourceByToken([sha256.Size]byte{})),
		"the digest of nothing":             second(r.SourceByToken(sha256.Sum256(nil))),
		"the digest in place of the token.": second(r.SourceByToken(sha256.Sum256(digest[:]))),
	} {
		if none != broker.ErrUnregistered {
			t.Errorf("%s: %v", name, none)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestSourcesRefused has the mistakes that people make, and a part of what they must be told.
func TestSourcesRefused(t *testing.T) {
	hash := hex.EncodeToString(digest[:])
	for name, c := range map[string]struct{ old, new, say string }{
		"misspelt field":          {"token_sha256", "token_sha", "token_sha"},
		"no name":                 {"name: forge", "name: ''", "name must have"},
		"name with a space":       {"name: forge", "name: the forge", "name must have"},
		"name twice":              {"name: forge", "name: cluster", "name is a duplicate"},
		"no owner":                {"    owner: team-build\n", "", "owner is missing"},
		"no proof":                {"    token_sha256: " + hash + "\n", "", "exactly one"},
		"two proofs":              {"token_sha256: " + hash, "token_sha256: " + hash + "\n    id: spiffe://prod/forge", "exactly one"},
		"the token itself":        {hash, "a-secret-token", "as sha256sum prints them"},
		"what sha256sum prints":   {hash, "'" + hash + "  -'", "as sha256sum prints them"},
		"the digest of nothing":   {hash, hex.EncodeToString(func() []byte { d := sha256.Sum256(nil); return d[:] }()), "that of nothing"},
		"no SPIFFE ID":            {"id: spiffe://prod/watcher", "id: watcher", "not a SPIFFE ID"},
		"a trust domain":          {"id: spiffe://prod/watcher", "id: spiffe://prod", "has no path"},
		"no source with a token":  {"    source: [\"https://forge.example/a\", \"/runs\"]\n", "", "source has 0 entries"},
		"a source with a space":   {"\"/runs\"", "\"a b\"", "is no URI"},
		"an empty source":         {"\"/runs\"", "\"\"", "is no URI"},
		"a long source":           {"\"/runs\"", "\"/" + strings.Repeat("x", registry.MaxSourceURI) + "\"", "is no URI"},
		"a source twice":          {"\"/runs\"", "\"https://forge.example/a\"", "twice"},
		"another's source":        {"\"/runs\"", "\"spiffe://prod/watcher\"", "which the source cluster speaks for"},
		"no kinds":                {"kinds: [ci/run]", "kinds: []", "kinds has 0 entries"},
		"a kind in capitals":      {"kinds: [ci/run]", "kinds: [CI/run]", "not allowed"},
		"an empty kind":           {"kinds: [ci/run]", "kinds: ['']", "kinds has an empty one"},
		"every kind":              {"kinds: [ci/run]", "kinds: ['*']", "not allowed"},
		"no workloads":            {"    workloads: [\"spiffe://prod/*\"]\n", "", "workloads has 0 entries"},
		"every workload":          {"\"spiffe://prod/*\"", "\"*\"", "not a SPIFFE ID"},
		"every trust domain":      {"\"spiffe://prod/*\"", "\"spiffe://*\"", "neither a SPIFFE ID"},
		"a part of a segment":     {"\"spiffe://prod/*\"", "\"spiffe://prod/re*\"", "not a SPIFFE ID"},
		"a star in the middle":    {"\"spiffe://prod/*\"", "\"spiffe://prod/*/x\"", "not a SPIFFE ID"},
		"a workload without path": {"\"spiffe://prod/*\"", "spiffe://prod", "has no path"},
	} {
		text := strings.Replace(withSources, c.old, c.new, 1)
		if text == withSources {
			t.Fatalf("%s: the mistake is not in the text", name)
		}
		if _, err := registry.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), c.say) || strings.Contains(err.Error(), "a-secret-token") {
			t.Errorf("%s: got %v, want something with %q", name, err, c.say)
		}
	}
	same := strings.Replace(withSources, "id: spiffe://prod/watcher", "token_sha256: "+hash+"\n    source: [\"/x\"]", 1)
	if _, err := registry.Parse([]byte(same)); err == nil || !strings.Contains(err.Error(), "proves itself as the source cluster does") {
		t.Errorf("a token twice: %v", err)
	}
}

// TestSourcesAreBounded at the number that each request with a token is compared with.
func TestSourcesAreBounded(t *testing.T) {
	file := func(n int) string {
		text := "sources:\n"
		for i := range n {
			text += fmt.Sprintf("  - {name: s%d, owner: o, id: 'spiffe://prod/s%d', kinds: [k], workloads: ['spiffe://prod/*']}\n", i, i)
		}
		return text
	}
	if _, err := registry.Parse([]byte(file(registry.MaxSources))); err != nil {
		t.Error(err)
	}
	if _, err := registry.Parse([]byte(file(registry.MaxSources + 1))); err == nil || !strings.Contains(err.Error(), "at most 256") {
		t.Error(err)
	}
}
