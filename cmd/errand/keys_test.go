package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// TestShieldKid: a kid that begins with a dash is not taken for flags, wherever it stands.
func TestShieldKid(t *testing.T) {
	const kid = "-yuIR7pTlBH7Dd77ax1G3ozIQDeST6kVPdgKRVTnWkM"
	for in, want := range map[string]string{
		"keys revoke " + kid + " --yes --reason x": "keys revoke --yes --reason x -- " + kid,
		"keys revoke --yes " + kid:                 "keys revoke --yes -- " + kid,
		"keys revoke -" + kid[:42]:                 "keys revoke -- -" + kid[:42],
		"keys revoke --yes -- " + kid:              "keys revoke --yes -- " + kid,
		"keys revoke --reason " + kid + " x":       "keys revoke --reason " + kid + " x",
		"keys revoke x" + kid:                      "keys revoke x" + kid,
		"keys revoke " + kid + "x":                 "keys revoke " + kid + "x",
		"keys":                                     "keys",
		kid:                                        kid,
		"demo " + kid:                              "demo " + kid,
	} {
		if got := strings.Join(shieldKid(strings.Fields(in)), " "); got != want {
			t.Errorf("%s\nbecomes %s\nwant    %s", in, got, want)
		}
	}
}

func TestPrintKeys(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	var out strings.Builder
	err := keyTable(now).show(&out, "table", nil, []wire.Key{
		{ID: "n", Algorithm: "ES256", State: "next", CreatedAt: now.Add(-59 * time.Second)},
		{ID: "a", Algorithm: "ES256", State: "active", CreatedAt: now.Add(-72 * time.Hour), ActivatedAt: at(-time.Minute)},
		{ID: "r", Algorithm: "ES256", State: "retiring", CreatedAt: now.Add(-72 * time.Hour), ActivatedAt: at(-50 * time.Hour), RetiredAt: at(-time.Hour), GoneAt: at(time.Minute)},
		{ID: "g", Algorithm: "RS256", State: "gone", CreatedAt: now.Add(-72 * time.Hour), ActivatedAt: at(-50 * time.Hour), RetiredAt: at(-49 * time.Hour), GoneAt: at(-48 * time.Hour)},
		{ID: "x", Algorithm: "ES256", State: "gone", CreatedAt: now.Add(time.Second), GoneAt: at(time.Second), Revoked: true},
	}...)
	if err != nil {
		t.Fatal(err)
	}
	var got [][]string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Fields(line))
	}
	want := [][]string{
		{"KID", "ALGORITHM", "STATE", "SINCE", "PUBLISHED", "UNTIL"}, {"n", "ES256", "next", "59s", "-"}, {"a", "ES256", "active", "1m", "-"},
		{"r", "ES256", "retiring", "1h", "2026-11-26T12:01:00Z"}, {"g", "RS256", "gone", "2d", "-"}, {"x", "ES256", "revoked", "0s", "-"},
	}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got\n%s", out.String())
	}
}
