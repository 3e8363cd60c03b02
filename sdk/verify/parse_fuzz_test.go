package verify

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// FuzzClaims reads payloads as if their signatures were good. It never panics, returns a grant or an
// error, and what it returns fits together, whatever an issuer that has gone wrong signs.
func FuzzClaims(f *testing.F) {
	const good = `{"iss":"https://b","sub":"spiffe://a/b","client_id":"spiffe://a/b","aud":"orders","iat":1,"exp":61,"jti":"gnt_00a","txn":"tsk_00a","scope":"a b",` +
		`"task":{"id":"tsk_00b","path":["tsk_00a","tsk_00b"],"name":"n"},"ep":[1,0],"cnf":{"x5t#S256":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}`
	for _, seed := range []string{
		good, strings.Replace(good, `"aud"`, `"act":{"sub":"spiffe://a/b"},"aud"`, 1), strings.Replace(good, `"sub":"spiffe://a/b"`, `"sub":"spiffe://a/c","act":{"sub":"spiffe://a/b"}`, 1),
		strings.Replace(good, `"aud"`, `"act":{"sub":"spiffe://a/b","act":{"sub":"spiffe://a/c"}},"aud"`, 1), strings.Replace(good, "61", "9223372036854775807", 1),
		strings.Replace(good, `"exp"`, `"nbf":9223372036854775807,"exp"`, 1), strings.Replace(good, `"scope":"a b"`, `"scope":""`, 1), `{}`, `null`, "{\"iss\":\"\xff\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		g, c, err := parseClaims(payload)
		if (g == nil) == (err == nil) {
			t.Fatalf("%v and %v", g, err)
		}
		if err != nil {
			return
		}
		shard, ok := wire.Shard(g.ID)
		path := g.Task.Path
		switch {
		case !ok || shard != g.shard || len(path) == 0 || len(path) > maxPath || path[0] != g.Task.Root || path[len(path)-1] != g.Task.ID:
			t.Errorf("grant %s of shard %d at %v", g.ID, g.shard, path)
		case len(g.Scopes) > maxScopes || slices.ContainsFunc(g.Scopes, func(s string) bool { return s == "" || strings.ContainsFunc(s, notNameRune) }):
			t.Errorf("scopes %q", g.Scopes)
		case !isSPIFFEID(g.Workload) || !isSPIFFEID(g.Client) || len(g.Actors) >= len(path) || len(g.Actors) == 0 && g.Client != g.Workload || len(g.Actors) > 0 && g.Client != g.Actors[0]:
			t.Errorf("%q, %q and %q", g.Workload, g.Client, g.Actors)
		case !g.Issued.Before(g.Expires) || g.Expires.Year() > 9999 || c.Issuer == "" || g.Audience == "" || g.epoch == 0:
			t.Errorf("%+v", g)
		}
	})
}

// FuzzHeader accepts no header but that of an access token, in the one way to write it.
func FuzzHeader(f *testing.F) {
	for _, seed := range []string{`{"typ":"at+jwt","alg":"ES256","kid":"k"}`, `{"typ":"at+jwt","alg":"none","kid":"k"}`, `{"typ":"at+jwt","alg":"ES256","kid":"k","\u006awk":{}}`, `[]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := parseHeader(base64.RawURLEncoding.EncodeToString(text) + ".e30.AA")
		if err != nil {
			return
		}
		var members map[string]any
		if err := json.Unmarshal(text, &members); err != nil {
			t.Fatalf("%q is not JSON: %v", text, err)
		}
		for _, name := range []string{"jwk", "jku", "x5u", "x5c", "crit", "zip", "b64", "cty"} {
			if _, there := members[name]; there {
				t.Errorf("accepted with %s: %q", name, text)
			}
		}
		typ, alg := members["typ"], members["alg"]
		if typ != "at+jwt" && typ != "application/at+jwt" || alg != "ES256" && alg != "RS256" && alg != "EdDSA" && alg != "Ed25519" || members["kid"] != h.KeyID {
			t.Errorf("%q: %+v", text, h)
		}
	})
}

// FuzzFeedEvent shows a view anything that a broker could send. It never panics, never makes what is
// dead alive, and never takes the position back.
func FuzzFeedEvent(f *testing.F) {
	for _, seed := range []string{
		`{"position":"7.1","entries":[{"shard":0,"number":1,"kind":"grant","id":"gnt_00b","until":"2100-01-01T00:00:00Z"}]}`,
		`{"position":"7.0"}`, `{"position":"8.0"}`, `{"position":"6.9"}`, `{"position":"7.0.0"}`, `{"position":""}`, `{"entries":[{"shard":-1}]}`, `null`,
		`{"position":"7.2","entries":[{"shard":0,"number":2,"kind":"selector","subject":"spiffe://*","until":"2100-01-01T00:00:00Z"}]}`,
		`{"position":"7.3","entries":[{"shard":0,"number":3,"kind":"of the future","until":"0001-01-01T00:00:00Z"}]}`,
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	now := time.Unix(1_800_000_000, 0)
	dead := &Grant{ID: "gnt_00a", epoch: 7, Expires: now.Add(time.Minute), Task: Task{Path: []string{"tsk_00a"}}}
	f.Fuzz(func(t *testing.T, data []byte, snapshot bool) {
		v := newView(Config{Audience: "orders", MaxEntries: 100, MaxStale: DefaultMaxStale})
		first := []wire.FeedEntry{{Number: 1, Kind: wire.KindTask, ID: "tsk_00a", Until: now.Add(time.Minute)}}
		if err := v.snapshot(wire.Position{Epoch: 7, Numbers: []uint64{1}}, first, now); err != nil {
			t.Fatal(err)
		}
		e, err := parseFeedEvent(data)
		if err != nil {
			return
		}
		before, _ := v.at()
		p, err := parsePosition(e.Position)
		switch {
		case err != nil:
			_ = v.early(e.Entries, now)
		case snapshot:
			_ = v.snapshot(p, e.Entries, now)
		default:
			_ = v.event(p, e.Entries, now)
		}
		after, _ := v.at()
		if after.Epoch < before.Epoch || after.Epoch == before.Epoch && !after.Covers(before) {
			t.Errorf("the position went from %s to %s", before, after)
		}
		if !v.dead(dead) || v.entries() > 100 {
			t.Errorf("a dead grant is alive, or %d entries are held", v.entries())
		}
	})
}
