package wire_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk/wire"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPositionText(t *testing.T) {
	for text, ok := range map[string]bool{
		"1.0":                                    true,
		"1795452000123.0.7.18446744073709551615": true,
		"1" + strings.Repeat(".0", wire.MaxShards):   true,
		"1" + strings.Repeat(".0", wire.MaxShards+1): false,
		"1" + strings.Repeat(".0", 100_000):          false,
		"":                                           false,
		"1":                                          false,
		"1.":                                         false,
		".1":                                         false,
		"1..2":                                       false,
		"01.2":                                       false,
		"1.02":                                       false,
		"+1.2":                                       false,
		"-1.2":                                       false,
		"1.2 ":                                       false,
		"1.0x2":                                      false,
		"1.2_0":                                      false,
		"1.18446744073709551616":                     false,
		"1.٢":                                        false,
	} {
		p, err := wire.ParsePosition(text)
		if ok != (err == nil) || ok && p.String() != text {
			t.Errorf("%.40q: %v, %v", text, p, err)
		}
	}
}

func FuzzParsePosition(f *testing.F) {
	f.Add("1.0.7")
	f.Add("1")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := wire.ParsePosition(text); err == nil && p.String() != text {
			t.Fatalf("%q was read as %q", text, p)
		}
	})
}

// FuzzShard reads two digits behind a prefix that is known, and nothing else.
func FuzzShard(f *testing.F) {
	for _, seed := range []string{"tsk_00a", "gnt_99a", "tsk_+1a", "gnt_0x1", "tsk_0", "rev_00a", "tsk_0\u0661", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		shard, ok := wire.Shard(id)
		if !ok {
			return
		}
		digits := fmt.Sprintf("%02d", shard)
		if shard < 0 || shard >= wire.MaxShards || !strings.HasPrefix(id, "tsk_"+digits) && !strings.HasPrefix(id, "gnt_"+digits) {
			t.Errorf("%q is of shard %d", id, shard)
		}
	})
}

// TestCovers: it is a partial order, and positions of different data sets are not in it.
func TestCovers(t *testing.T) {
	position := rapid.Custom(func(t *rapid.T) wire.Position {
		return wire.Position{
			Epoch:   rapid.Uint64Range(1, 2).Draw(t, "epoch"),
			Numbers: rapid.SliceOfN(rapid.Uint64Range(0, 2), 1, 3).Draw(t, "numbers"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := position.Draw(t, "a"), position.Draw(t, "b"), position.Draw(t, "c")
		if !a.Covers(a) {
			t.Fatalf("%v does not cover itself", a)
		}
		if a.Covers(b) && b.Covers(a) && a.String() != b.String() {
			t.Fatalf("%v and %v cover each other", a, b)
		}
		if a.Covers(b) && b.Covers(c) && !a.Covers(c) {
			t.Fatalf("%v covers %v, which covers %v", a, b, c)
		}
		if a.Covers(b) && (a.Epoch != b.Epoch || len(a.Numbers) != len(b.Numbers)) {
			t.Fatalf("%v covers %v of another data set", a, b)
		}
	})
}

func TestShard(t *testing.T) {
	for id, want := range map[string]int{"tsk_00x": 0, "tsk_07": 7, "gnt_99abc": 99, "": -1, "tsk_": -1, "tsk_1": -1, "tsk_1x": -1, "key_00": -1, "tsk_-1": -1, "tsk_+1": -1} {
		n, ok := wire.Shard(id)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%q: %d, %v", id, n, ok)
		}
	}
}
