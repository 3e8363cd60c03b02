package main

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"
)

// misread are texts that YAML, or some reader of it, takes for something else when they stand as they are.
var misread = []string{
	"? a", "?", "- a", "-", ": a", ":", "a: b", "a:", "a :b", "#", "a #b", "a#b", "%", "%TAG", "@a", "`a`", "!a", "!!str a", "&a", "*a", "|", "|-", ">", ">-",
	"", " ", " a", "a ", "a  b", "\ta", "a\t", "a\nb", "a\n", "\n", "\na", "a\r\nb", "\u0085", "\u2028", "\ufeff", "\x00", "\x1b[2J", "\u202e", "\U000e0041", "\U0001f600",
	"null", "Null", "NULL", "~", "y", "Y", "n", "yes", "Yes", "NO", "on", "Off", "true", "TRUE", "false", "nan", ".nan", ".NaN", ".inf", "-.inf", "+.INF", "Infinity",
	"0", "-0", "1", "+1", "1.5", ".5", "5.", "1e3", "1E-3", "0x1f", "0o17", "017", "0b1", "1_000", "1:20", "190:20:30", "2026-11-24", "2026-11-24T03:12:00Z", "12:30",
	"[", "]", "{", "}", "[a]", "{a: b}", ",", "a, b", "'", "''", "'a'", `"`, `"a"`, `\`, `a\nb`, "---", "--- a", "...", "<<", "=", "a: |", "é", "日本", "\u0301a", "\u00a0",
	"spiffe://dev.errand/report", "orders:read", "tsk_00gybxqbdwiuxgoxp7eqvjcyoumu", "monthly close", "a/b", "/a", "a@b", "a+b", "FIN-212: monthly close",
	strings.Repeat("k", 1025), strings.Repeat("k ", 600), strings.Repeat("\U000e0041", 400),
}

// anyText is one of those, or any.
var anyText = rapid.OneOf(rapid.SampledFrom(misread), nasty, rapid.StringMatching(`[ -~]{0,12}`))

// anyJSON is a value as encoding/json reads it.
func anyJSON(depth int) *rapid.Generator[any] {
	leaves := []*rapid.Generator[any]{
		anyText.AsAny(), rapid.Bool().AsAny(), rapid.Just[any](nil), rapid.Float64Range(-math.MaxFloat64, math.MaxFloat64).AsAny(),
		rapid.Map(rapid.IntRange(-1<<53, 1<<53), func(n int) any { return float64(n) }),
	}
	if depth > 0 {
		below := anyJSON(depth - 1)
		leaves = append(leaves, rapid.SliceOfN(below, 0, 4).AsAny(), rapid.MapOfN(anyText, below, 0, 4).AsAny())
	}
	return rapid.OneOf(leaves...)
}

// checkYAML fails unless a text of JSON comes back from YAML as the value that it has, in characters that print.
func checkYAML(t rapid.TB, text []byte) {
	t.Helper()
	var want, got any
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	out, err := asYAML(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	onlyPrints(t, "YAML", string(out))
	if err := yaml.Unmarshal(out, &got); err != nil {
		t.Fatalf("%s\nbecame\n%s\nwhich is no YAML: %v", text, out, err)
	}
	if got = asJSON(got); !reflect.DeepEqual(got, want) {
		t.Fatalf("%s\nbecame\n%s\nwhich is %#v; want %#v", text, out, got, want)
	}
}

// asJSON is a value of YAML as JSON has it: each number is a float64.
func asJSON(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for name := range v {
			v[name] = asJSON(v[name])
		}
	case []any:
		for i := range v {
			v[i] = asJSON(v[i])
		}
	case uint64:
		return float64(v)
	case int64:
		return float64(v)
	case int:
		return float64(v)
	}
	return value
}

// TestYAML: whatever JSON has, -o yaml says the same.
func TestYAML(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, err := json.Marshal(anyJSON(3).Draw(t, "value"))
		if err != nil {
			t.Fatal(err)
		}
		checkYAML(t, text)
	})
}

// TestYAMLOfTexts: each of the texts that YAML has a use of its own for, as value, item and key.
func TestYAMLOfTexts(t *testing.T) {
	for _, text := range misread {
		for _, value := range []any{
			text, []any{text}, map[string]any{text: text}, []any{[]any{text, text}, map[string]any{text: map[string]any{text: []any{text, nil}}, "a": text}},
		} {
			in, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			checkYAML(t, in)
		}
	}
}

// FuzzYAML has what no marshaller writes: white space, escapes, and numbers in all their forms.
func FuzzYAML(f *testing.F) {
	for _, text := range []string{`{"a":[1,-0,1e3,1E-7,1.50,9223372036854775807,-9223372036854775808,9223372036854775808,123456789012345678901234567890]}`, ` [ [ ] , { } , [ { "a" : [ ] } ] ] `, `"\u003f\u0020\ud83d\ude00\/"`, `"\ud800"`, `1 2`, `[1`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) {
			if out, err := asYAML(text); err == nil {
				t.Fatalf("%q is no JSON, and became %s", text, out)
			}
			return
		}
		var value any
		if !jsontext.Value(text).IsValid() || json.Unmarshal(text, &value) != nil {
			return // a member twice, which YAML forbids, half a character, or a number that is none of Go's
		}
		checkYAML(t, text)
	})
}

// TestYAMLIsForPeople shows what it looks like.
func TestYAMLIsForPeople(t *testing.T) {
	out, err := asYAML([]byte(`{"id":"tsk_1","path":["tsk_1"],"ref":{"kind":"ci/run","id":"7"},"labels":{},"items":[{"a":1,"b":[]},[2,[3]]],"note":"? \u001b","took_ms":1e-7,"at":"2026-11-24T03:12:00Z","end":null}`))
	if err != nil {
		t.Fatal(err)
	}
	const want = `id: tsk_1
path:
- tsk_1
ref:
  kind: ci/run
  id: "7"
labels: {}
items:
- a: 1
  b: []
- - 2
  - - 3
note: "? \x1b"
took_ms: 1.0e-7
at: "2026-11-24T03:12:00Z"
end: null
`
	if !bytes.Equal(out, []byte(want)) {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}
