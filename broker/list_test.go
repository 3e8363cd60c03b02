package broker

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func FuzzParsePlace(f *testing.F) {
	task, grant := NewTaskID(3), NewGrantID(3)
	for _, text := range []string{
		"", "x", string(task), string(grant), Place{Task: task, Expires: time.Unix(1800000000, 0), Grant: grant}.String(),
		string(task) + ".", string(task) + ".01." + string(grant), string(task) + ".+1." + string(grant), string(task) + ".4294967296." + string(grant),
		string(task) + ".1." + string(task), string(task) + ".1." + string(grant) + ".", "." + string(task),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		place, err := ParsePlace(text)
		if err != nil {
			if !errors.Is(err, ErrNotFound) || place != (Place{}) {
				t.Fatalf("%q: got %+v, error %v; want ErrNotFound and nothing", text, place, err)
			}
			return
		}
		if place.String() != text {
			t.Fatalf("%q is read as %q", text, place)
		}
	})
}

func TestPlacesInOrder(t *testing.T) {
	low, high := TaskID("tsk_00"+strings.Repeat("a", randomChars)), TaskID("tsk_01"+strings.Repeat("2", randomChars))
	first, last := GrantID("gnt_00"+strings.Repeat("2", randomChars)), GrantID("gnt_00"+strings.Repeat("a", randomChars))
	places := []Place{
		{},
		{Task: low},
		{Task: low, Expires: time.Unix(9, 0), Grant: last},
		{Task: low, Expires: time.Unix(10, 0), Grant: first},
		{Task: low, Expires: time.Unix(10, 0), Grant: last},
		{Task: high},
	}
	if !slices.IsSortedFunc(places, Place.Compare) {
		t.Error("the places are not in order")
	}
	for i, p := range places {
		for j, other := range places {
			if got := p.Compare(other); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%v against %v: %d", p, other, got)
			}
		}
		back, err := ParsePlace(p.String())
		if err != nil || back.Compare(p) != 0 {
			t.Errorf("%q comes back as %+v, error %v", p, back, err)
		}
	}
}

func TestQueryCheck(t *testing.T) {
	task := NewTaskID(0)
	grant := PlaceOf(Grant{ID: NewGrantID(0), Task: task, Expires: time.Unix(1800000000, 0)}).String()
	ref := TaskRef{Kind: "k8s/job", ID: "1"}
	for _, test := range []struct {
		name  string
		query Query
		field string // "" for none that is wrong
	}{
		{"everything", Query{}, ""},
		{"of a workload, below a task, from a grant on", Query{Grants: true, Below: task, After: grant}, ""},
		{"grants from a task on", Query{Grants: true, After: string(task)}, ""},
		{"by a ref", Query{Ref: ref}, ""},
		{"due", Query{Due: true}, ""},
		{"ended", Query{Ended: EventRange{"evt_a", "evt_b"}}, ""},
		{"the least", Query{Limit: 1}, ""},
		{"the most", Query{Limit: MaxPage}, ""},
		{"less than the least", Query{Limit: -1}, "limit"},
		{"more than the most", Query{Limit: MaxPage + 1}, "limit"},
		{"tasks from a grant on", Query{After: grant}, "cursor"},
		{"no cursor", Query{After: "tsk_00"}, "cursor"},
		{"a ref without an ID", Query{Ref: TaskRef{Kind: "k8s/job"}}, "ref"},
		{"a ref without a kind", Query{Ref: TaskRef{ID: "1"}}, "ref"},
		{"a ref by its URL", Query{Ref: TaskRef{URL: "https://example.org/"}}, "ref"},
		{"of and below", Query{Of: task, Below: task}, "query"},
		{"below and by a ref", Query{Below: task, Ref: ref}, "query"},
		{"due and by a ref", Query{Due: true, Ref: ref}, "query"},
		{"grants that are due", Query{Grants: true, Due: true}, "query"},
		{"grants that have ended", Query{Grants: true, Ended: EventRange{"evt_a", "evt_b"}}, "query"},
		{"ended and due", Query{Due: true, Ended: EventRange{"evt_a", "evt_b"}}, "query"},
		{"ended with nothing", Query{Ended: EventRange{"evt_a", "evt_a"}}, "ended"},
		{"ended from nowhere", Query{Ended: EventRange{"", "evt_a"}}, "ended"},
		{"ended without end", Query{Ended: EventRange{"evt_a", ""}}, "ended"},
	} {
		got, _, err := test.query.Check()
		var bad *Invalid
		switch {
		case test.field == "" && (err != nil || got.Limit < 1):
			t.Errorf("%s: limit %d, error %v; want one, and none", test.name, got.Limit, err)
		case test.field != "" && (!errors.As(err, &bad) || bad.Field != test.field):
			t.Errorf("%s: error %v; want one about %s", test.name, err, test.field)
		}
	}
}
