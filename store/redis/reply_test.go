package redis_test

import (
	"slices"
	"testing"

	"github.com/errandhq/errand/store/redis"
)

// FuzzReply reads whatever a server may say as the answer of each script. It is an answer of the contract, or
// one of its errors; it never makes a broker stop, or take up more memory than it came in.
func FuzzReply(f *testing.F) {
	list := append(answers(redis.AnyID, redis.AnyID),
		answer{"open", false, true, row{"ok", "open", "7", "1", "", "errand", 1795717014000, 1795717014000}},
		answer{"List of grants", false, false, row{"ok", "list 0 all  ", 1795717014000, rows{}, redis.AnyID + "\x00\x00\x00\x01" + redis.AnyID, 0}})
	for _, a := range list {
		// A seed that no call believes ends at its first value, and what is made of it finds nothing else.
		if believed, err := redis.ReadAll(f.Context(), a.text()); err != nil || !slices.Contains(believed, a.what) {
			f.Fatalf("%s does not believe a right answer, and only %v do: %v", a.what, believed, err)
		}
		f.Add(a.text())
		f.Add(packed(row{a.whole(), row{"errand:{p00}:tasks", redis.AnyID}}))
		for _, status := range []string{"failed", "epoch", "ended", "behind", "quota", "declare", "active", "broken", "older", "again", "not found"} {
			a.says = slices.Clone(a.says)
			a.says[0] = status
			f.Add(a.text())
		}
	}
	f.Add(packed(row{"ok", "probe", rows{"HSET"}}))
	f.Add(packed(row{"ok", "watch 0", 1, 0, 0, 0, "", rows{}})) // the first answer, without a control list
	f.Add(packed(row{"ended", "all", redis.AnyID, "completed", "caller", 1}))
	for _, v := range []any{row{}, "ok", 1 << 60, nil} {
		f.Add(packed(v))
	}
	f.Add("\xdd\xff\xff\xff\xff")         // a list that claims to be long
	f.Add("\x91\xdd\xff\xff\xff\xff\xa2") // and another one in a list
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := redis.ReadAll(t.Context(), text); err != nil {
			t.Error(err)
		}
	})
}
