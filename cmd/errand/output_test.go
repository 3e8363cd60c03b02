package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"pgregory.net/rapid"
)

// onlyPrints fails for a character that would do something to a terminal.
func onlyPrints(t rapid.TB, what, text string) {
	if i := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' }); i >= 0 {
		t.Fatalf("%s: %q has something at byte %d that does not print", what, text, i)
	}
}

// nasty is text that somebody else may have chosen.
var nasty = rapid.Custom(func(t *rapid.T) string {
	part := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"\x1b[2J", "\u009b31m", "\u202e", "\x07", "\x7f", "\n", "\r", "\t", "\u2028", "\U000e0041", `"`, `\`}))
	return strings.Join(rapid.SliceOfN(part, 0, 6).Draw(t, "parts"), "")
})

// TestOutputIsSafeForATerminal: whatever somebody has named a task, no format has it do anything to a
// terminal, and in JSON it is what it was; TestYAML has the same for YAML.
func TestOutputIsSafeForATerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		row := finding{Check: "claims", Result: nasty.Draw(t, "result"), Detail: nasty.Draw(t, "detail")}
		answer, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		names := findings
		names.name = func(f finding) string { return f.Detail }
		for _, format := range formats {
			var out bytes.Buffer
			if err := names.show(&out, format, answer, row); err != nil {
				t.Fatalf("%s: %v", format, err)
			}
			onlyPrints(t, format, out.String())
			if format != "json" && format != "ndjson" {
				continue
			}
			var back, want finding
			if err := errors.Join(json.Unmarshal(out.Bytes(), &back), json.Unmarshal(answer, &want)); err != nil || back != want {
				t.Fatalf("%s: %+v came back as %+v (%v)", format, want, back, err)
			}
		}
	})
}

// TestErrorsAreSafeForATerminal: what the broker refuses with may hold what others have typed.
func TestErrorsAreSafeForATerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := nasty.Draw(t, "text")
		refusal := &api.Refusal{Problem: wire.Problem{Title: text, Detail: text, Missing: map[string]string{text: text}, Rule: text, DecisionID: "d" + text}}
		var out bytes.Buffer
		if _, err := (plain{&out}).Write([]byte(refusal.Error())); err != nil {
			t.Fatal(err)
		}
		onlyPrints(t, "an error", out.String())
	})
}

// TestCSV: a long table of any language comes back as it was, and nothing of it is a formula.
func TestCSV(t *testing.T) {
	rows := make([]finding, 500)
	for i := range rows {
		rows[i] = finding{Check: "claims", Result: strings.Repeat("ä", i%7), Detail: "größer, \"日本\""}
	}
	formulas := []string{"=1+1", "+1", "-1", "@x", "\t=1", " =1", "\n=1"}
	for i, text := range formulas {
		rows[i].Detail = text
	}
	var out bytes.Buffer
	if err := findings.show(&out, "csv", nil, rows...); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(lines) != 1+len(rows) {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	for i, row := range rows {
		line, want := lines[1+i], row.Detail
		if i < len(formulas) {
			want = "'" + want
		}
		if !slices.Contains(line, want) || !slices.Contains(line, row.Result) {
			t.Errorf("line %d: %q; want %q and %q", i, line, want, row.Result)
		}
	}
}
