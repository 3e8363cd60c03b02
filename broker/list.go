package broker

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Check returns the query with its limit filled in, and the place that the list goes on from. Stores begin a
// List with it. ErrInvalid for a limit, a cursor or a combination that makes no sense.
func (q Query) Check() (Query, Place, error) {
	if q.Limit == 0 {
		q.Limit = MaxPage
	}
	if q.Limit < 1 || q.Limit > MaxPage {
		return q, Place{}, invalid("limit", "is %d; it must be 1 to %d", q.Limit, MaxPage)
	}
	if q.Ref != (TaskRef{}) && (q.Ref.Kind == "" || q.Ref.ID == "") {
		return q, Place{}, invalid("ref", "needs a kind and an ID")
	}
	isEnded := q.Ended != EventRange{}
	if isEnded && (q.Ended.From == "" || q.Ended.From >= q.Ended.Until) {
		return q, Place{}, invalid("ended", "needs an event, and a later one")
	}
	ways := 0
	for _, set := range []bool{q.Of != "", q.Below != "", q.Ref != TaskRef{}, q.Due, isEnded} {
		if set {
			ways++
		}
	}
	if ways > 1 || (q.Due || isEnded) && q.Grants {
		return q, Place{}, invalid("query", "asks in two ways that exclude each other; ask in one")
	}
	after, err := ParsePlace(q.After)
	if err != nil || after.Grant != "" && !q.Grants {
		return q, Place{}, invalid("cursor", "is none of this list; pass on what the page before said, or nothing for the first page")
	}
	return q, after, nil
}

// Place is where a task or a grant stands in a list: tasks in the order of their IDs, and the grants of one in
// that of their expiries, and then of theirs. The place of a task is before those of its grants. The zero
// Place is before everything.
type Place struct {
	Task    TaskID
	Expires time.Time // of a grant
	Grant   GrantID   // "" for a task
}

// PlaceOf is the place of a grant.
func PlaceOf(g Grant) Place { return Place{Task: g.Task, Expires: g.Expires, Grant: g.ID} }

// Compare is negative for a place before the other.
func (p Place) Compare(other Place) int {
	return cmp.Or(cmp.Compare(p.Task, other.Task), p.Expires.Compare(other.Expires), cmp.Compare(p.Grant, other.Grant))
}

// String is the place as a cursor: the task's ID, and of a grant also the second in which it expires and its
// ID, with dots in between.
func (p Place) String() string {
	if p.Grant == "" {
		return string(p.Task)
	}
	return fmt.Sprintf("%s.%d.%s", p.Task, p.Expires.Unix(), p.Grant)
}

// ParsePlace reads what String has written, and "" as the zero Place. It need not be the place of anything.
// ErrNotFound for anything else.
func ParsePlace(text string) (Place, error) {
	if text == "" {
		return Place{}, nil
	}
	parts := strings.Split(text, ".")
	task, err := ParseTaskID(parts[0])
	if err != nil {
		return Place{}, err
	}
	place := Place{Task: task}
	if len(parts) == 1 {
		return place, nil
	}
	if len(parts) != 3 {
		return Place{}, ErrNotFound
	}
	second, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return Place{}, ErrNotFound
	}
	if place.Grant, err = ParseGrantID(parts[2]); err != nil {
		return Place{}, err
	}
	place.Expires = time.Unix(int64(second), 0).UTC()
	if place.String() != text {
		return Place{}, ErrNotFound
	}
	return place, nil
}
