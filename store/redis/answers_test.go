package redis_test

import (
	"slices"

	"github.com/tinylib/msgp/msgp"
)

// row is a list in an answer that has so many values and no fewer; rows is one that has as many as there are.
type (
	row  []any
	rows []any
)

// answer is what a script says when all is well.
type answer struct {
	what   string
	many   bool // its script makes many calls in one run, and this is what it says of one
	writes bool
	says   row
}

// text is the answer as Redis sends it.
func (a answer) text() string { return packed(a.whole()) }

// whole has an answer for each call of the run.
func (a answer) whole() any {
	if a.many {
		return row{a.says}
	}
	return a.says
}

func packed(v any) string {
	raw, err := msgp.AppendIntf(nil, plain(v))
	if err != nil {
		panic(err) // there is nothing in it but strings, integers and lists
	}
	return string(raw)
}

func plain(v any) any {
	switch v := v.(type) {
	case row:
		return plain(rows(v))
	case rows:
		list := make([]any, len(v))
		for i := range v {
			list[i] = plain(v[i])
		}
		return list
	}
	return v
}

// another is the same answer about something else.
func (a answer) another() answer {
	a.says = slices.Clone(a.says)
	a.says[1] = "somebody else"
	return a
}

// answers are one to each kind of call on a task and a grant, whose IDs they have as Redis does.
func answers(task, grant string) []answer {
	const now, until, event = 1795717014000, 1795717074000, "evt_0123456789abcdefghjkmnpqrs"
	t := row{task, "spiffe://example.org/alice", "\x01n\x01p\x00\x00", now, 60000, until, until, "", 1, "active", "", until}
	g := row{grant, task, "orders", "\x011\x00\x00\x04read", now, until, 7, 8, 0}
	receipt := row{event, "completed", "caller", "", now, 1, 0, "7"}
	entries := rows{
		row{3, "task", task, until, 1, "orders mail"}, row{4, "grant", grant, until, 1, "orders"}, row{5, "key", "k1", until, 0, ""},
		row{6, "selector", "\x01s\x01a\x00", until, 0, ""}, row{7, "all", "", until, 0, ""}, row{7, "", "", until, 0, ""},
	}
	lock := row{2, "\x01l\x01r\x01a\x01s\x01a\x00", now, until}
	return []answer{
		{"Grant that begins", true, true, row{"begun", task, now, 3, 7, rows{until}, until, ""}},
		{"Grant that issues", true, true, row{"issued", task, now, 3, 7, rows{until}, t}},
		{"Grant that is replayed", true, true, row{"replayed", task, now, 3, t, rows{g}}},
		{"Heartbeat", false, true, row{"ok", "heartbeat", now, rows{rows{task, t}}}},
		{"End", true, true, row{"ok", task, now, 1, t, receipt, rows{}, 0, rows{"orders"}}},
		{"End of a grant", true, true, row{"ok", grant, now, 1, t, receipt, g, 0, rows{"orders"}}},
		{"End of all", false, true, row{"ok", "all 0 ", now, 1, 7, now, event, "", "operator", 0}},
		{"Lookup", true, false, row{"ok", task, now, 3, t, rows{}}},
		{"Lookup of a grant", true, false, row{"ok", grant, now, 3, t, g}},
		{"List", false, false, row{"ok", "list 0 all  ", now, rows{t}, task, 0}},
		{"List of what is due", false, false, row{"ok", "list 0 due  ", now, rows{}, "", 0, "7"}},
		{"Watch", false, false, row{"ok", "watch 0", now, 7, 7, 3, "", entries, rows{lock}, rows{row{1, "all", "", until, 0, ""}}}},
		{"Read", false, true, row{"ok", "keys", now, 1, "sealed", 0}},
		{"Post", false, true, row{"ok", "kind"}},
		{"Notes", false, false, row{"ok", "kind 0", "0", rows{row{"id", 1000, "text"}}}},
	}
}

// spoil calls with for each way in which one value of an answer can be of another type, or missing at the end
// of a list that must have it.
func spoil(v any, with func(any)) {
	var list rows
	wrong := []any{"x", 1, rows{}, nil}
	switch v := v.(type) {
	case string:
		wrong = wrong[1:]
	case int:
		wrong[1] = wrong[0]
		wrong = wrong[1:]
	case row:
		list, wrong = rows(v), []any{"x", 1, nil}
		with(rows(v[:len(v)-1]))
	case rows:
		list, wrong = v, []any{"x", 1, nil}
	}
	for _, w := range wrong {
		with(w)
	}
	for i := range list {
		spoil(list[i], func(w any) {
			changed := slices.Clone(list)
			changed[i] = w
			with(changed)
		})
	}
}

// lengthen calls with for each way in which a list of an answer can have one value too many.
func lengthen(v any, with func(any)) {
	var list rows
	switch v := v.(type) {
	case row:
		list = rows(v)
	case rows:
		list = v
	default:
		return
	}
	with(append(slices.Clone(list), 1))
	for i := range list {
		lengthen(list[i], func(l any) {
			changed := slices.Clone(list)
			changed[i] = l
			with(changed)
		})
	}
}
