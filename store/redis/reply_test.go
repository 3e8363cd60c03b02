package redis_test

import (
	"testing"

	"github.com/tinylib/msgp/msgp"

	"github.com/errandhq/errand/store/redis"
)

// FuzzReply reads whatever a server may say as the answer of each script. It is an answer of the contract, or
// one of its errors; it never makes a broker stop, or take up more memory than it came in.
func FuzzReply(f *testing.F) {
	id := "abcdefghijklmnopqrstuvwxyz"
	task := []any{id, "spiffe://example.org/a", "\x01n\x01p\x00\x00", 1000, 30000, 31000, 61000, "", 1, "active", "", 99000}
	receipt := []any{"evt_" + id, "completed", "caller", "", 2000, 1, 0, "7"}
	for _, answer := range []any{
		[]any{[]any{"ok", id, 2000, 1, task, receipt, []any{}, 0, []any{"orders"}}},
		[]any{[]any{"ok", id, 2000, 1, task, receipt, []any{}, 1}},
		[]any{[]any{"ok", id, 2000, 3, task, []any{id, id, "orders", "\x06orders\x00\x00", 1000, 2000, 7, 8, 0}}},
		[]any{[]any{"failed", id, "why"}, []any{"errand:{p00}:tasks", id}},
		[]any{[]any{"ok", "watch", 2000, 7, 7, 1, "", []any{[]any{7, "task", id, 9000, 1, "orders"}}, []any{}, []any{}}, []any{"k", "i"}},
		[]any{"ok", "heartbeat", 2000, []any{[]any{id, task}}},
		[]any{"ok", "list", 2000, []any{task}, id, 0},
		[]any{}, "ok", 1 << 60, nil,
	} {
		raw, err := msgp.AppendIntf(nil, answer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(raw))
	}
	f.Add("\xdd\xff\xff\xff\xff")         // a list that claims to be long
	f.Add("\x91\xdd\xff\xff\xff\xff\xa2") // and another one in a list
	f.Fuzz(func(t *testing.T, text string) {
		if err := redis.ReadAll(text); err != nil {
			t.Error(err)
		}
	})
}
