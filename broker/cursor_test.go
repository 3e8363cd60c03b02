package broker

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzCursor: a text is read as a cursor only when it is exactly what was written for the same list.
func FuzzCursor(f *testing.F) {
	keys, err := newEndKeys(bytes.Repeat([]byte{7}, EndKeySecretSize))
	if err != nil {
		f.Fatal(err)
	}
	b := &Broker{endKeys: keys, view: newView()}
	req := ListRequest{Filter: Filter{Names: []string{"x"}}}
	good := b.sealCursor(req, false, cursor{Source: 1, After: string(NewTaskID(0))})
	for _, text := range []string{"", "x", ".", good, good + "=", good[1:], good + "\n", b.sealCursor(ListRequest{}, false, cursor{}), b.sealPlan(Plan{}, "x")} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		req.Cursor = text
		c, err := b.openCursor(req, false)
		switch {
		case text == "" && (err != nil || c.After != ""):
			t.Fatalf("none is read as %+v, %v", c, err)
		case text != "" && err == nil && b.sealCursor(req, false, c) != text:
			t.Fatalf("%q is read as %+v", text, c)
		case err != nil && !errors.Is(err, ErrInvalid):
			t.Fatal(err)
		}
	})
}
