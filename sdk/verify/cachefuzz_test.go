package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
	"pgregory.net/rapid"
)

// TestCacheKeepsEveryDenial: what a view denies, one that was restored from its file denies, and no
// more.
func TestCacheKeepsEveryDenial(t *testing.T) {
	const agents = "spiffe://td/agents/"
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		v := testView(nil)
		p := wire.Position{Epoch: 7, Numbers: []uint64{9, 9}}
		entry := rapid.Custom(func(t *rapid.T) wire.FeedEntry {
			return wire.FeedEntry{
				Kind:  rapid.SampledFrom([]string{wire.KindGrant, wire.KindTask, wire.KindKey, wire.KindSelector, wire.KindAll, "new"}).Draw(t, "kind"),
				Shard: rapid.IntRange(0, 1).Draw(t, "shard"), Number: rapid.Uint64Range(1, 9).Draw(t, "number"),
				ID:       rapid.SampledFrom([]string{"gnt_00a", "gnt_01a", "tsk_00a", "tsk_01b", "kid1", "kid2"}).Draw(t, "id"),
				Subject:  rapid.SampledFrom([]string{"", agents + "a", agents + "*", "spiffe://td/*", "spiffe://td/agen*"}).Draw(t, "subject"),
				Audience: rapid.SampledFrom([]string{"", "orders", "billing"}).Draw(t, "audience"),
				Scope:    rapid.SampledFrom([]string{"", "read", "write"}).Draw(t, "scope"),
				Until:    now.Add(time.Duration(rapid.IntRange(-5, 100).Draw(t, "until")) * time.Second),
			}
		})
		entries := rapid.SliceOfN(entry, 0, 6).Draw(t, "entries")
		if err := errors.Join(v.snapshot(p, entries, now), v.prove(proof{asOf: now, position: p})); err != nil {
			t.Fatal(err)
		}
		c := cached{Keys: []byte(`{}`)}
		if !v.save(&c, now) {
			t.Fatal("it was not saved")
		}
		data, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeCached(data)
		if err != nil {
			t.Fatal(err)
		}
		next := testView(nil)
		at, err := parsePosition(back.Position)
		if err := errors.Join(err, next.restore(at, back.Entries, now, back.Swept, now)); err != nil {
			t.Fatal(err)
		}
		if got := next.position.String(); got != p.String() || next.size() != v.size() {
			t.Fatalf("at %s with %d, and before at %s with %d", got, next.size(), p, v.size())
		}
		for _, g := range someGrants(now) {
			if before, after := v.denied(g), next.denied(g); before != after {
				t.Fatalf("%+v: %v before, %v after", g, before, after)
			}
		}
	})
}

// someGrants are grants of which each kind of entry means some.
func someGrants(now time.Time) []*Grant {
	var out []*Grant
	for shard := range 2 {
		for _, subject := range []string{"spiffe://td/agents/a", "spiffe://td/agents/a/b", "spiffe://td/x", "spiffe://other/agents/a"} {
			for _, number := range []uint64{0, 4, 9} {
				out = append(out, &Grant{
					ID: fmt.Sprintf("gnt_%02da", shard), Workload: subject, Client: subject, Scopes: []string{"read"}, key: "kid1",
					Task: Task{Path: []string{"tsk_00x"}}, Expires: now.Add(time.Minute), shard: shard, epoch: 7, number: number,
				}, &Grant{
					ID: "gnt_00c", Workload: subject, Client: subject, key: "kid3",
					Task: Task{Path: []string{"tsk_00a", "tsk_00x"}}, Expires: now.Add(time.Minute), shard: shard, epoch: 7, number: number,
				}, &Grant{
					ID: "gnt_00c", Workload: subject, Client: subject, Scopes: []string{"write"}, key: "kid3",
					Task: Task{Path: []string{"tsk_00x"}}, Expires: now.Add(time.Minute), shard: shard, epoch: 7, number: number,
				})
			}
		}
	}
	return out
}

// FuzzCacheFile decodes any bytes, and any bytes with a good sum in front, and takes them in.
func FuzzCacheFile(f *testing.F) {
	good := cached{
		Issuer: "https://issuer", Audience: "orders", Saved: time.Unix(1_700_000_000, 0).UTC(), Boot: "b", Uptime: 5, Keys: []byte(`{"keys":[]}`),
		Position: "7.1.2", Entries: []wire.FeedEntry{{Kind: wire.KindTask, ID: "tsk_00a", Until: time.Unix(1_800_000_000, 0).UTC()}},
	}
	data, err := good.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[len(cacheMagic)+2*sha256.Size+1:])
	f.Add([]byte(`{"entries":null,"keys":null,"position":"0.0"}`))
	f.Add([]byte(`{"feed_age":9223372036854775807,"uptime":-1}`))
	f.Add([]byte(`{"position":"1.1","entries":[{"kind":"selector","shard":5,"until":"9999-12-31T23:59:59Z"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		sum := sha256.Sum256(data)
		for _, file := range [][]byte{data, append([]byte(cacheMagic+hex.EncodeToString(sum[:])+"\n"), data...)} {
			c, err := decodeCached(file)
			if err != nil {
				continue
			}
			now := time.Now()
			if since, err := c.elapsed(now); err == nil && since < 0 {
				t.Fatalf("it was saved %s from now", since)
			}
			_, _ = parseKeys(c.Keys)
			p, err := parsePosition(c.Position)
			if err != nil {
				continue
			}
			v := testView(nil)
			if v.restore(p, c.Entries, now.Add(-c.FeedAge), c.Swept, now) == nil && c.FeedAge > v.maxStale {
				if ok, _ := v.freshness(now); ok {
					t.Fatal("an old view is fresh")
				}
			}
		}
	})
}
