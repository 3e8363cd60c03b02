package broker

import (
	"crypto/sha256"
	"encoding/json"
	"slices"
)

// MaxCursor is how many bytes a cursor has at most.
const MaxCursor = 512

// cursor is where a list goes on: at one of its filter's sources, at a cursor of the store.
type cursor struct {
	List   []byte `json:"l"` // a digest of what is listed
	Epoch  uint64 `json:"e"`
	Source int    `json:"s,omitempty"`
	After  string `json:"a,omitempty"`
}

const cursorText = "errand cursor"

// digest is of all that a cursor must not be taken from one list to another with. The size of a page may change.
func (req ListRequest) digest(grants bool) []byte {
	req.Size, req.Cursor = 0, ""
	sum := sha256.Sum256(plainJSON(struct {
		ListRequest
		Grants bool
	}{req, grants}))
	return sum[:16]
}

func (b *Broker) sealCursor(req ListRequest, grants bool, c cursor) string {
	c.List, c.Epoch = req.digest(grants), b.view.epoch()
	return b.endKeys.seal(cursorText, plainJSON(c))
}

// openCursor reads exactly what sealCursor wrote for the same list of the same data set.
func (b *Broker) openCursor(req ListRequest, grants bool) (c cursor, err error) {
	if req.Cursor == "" {
		return cursor{}, nil
	}
	if len(req.Cursor) > MaxCursor {
		return cursor{}, invalid("cursor", "has %d bytes; send the next_cursor of the page before as it came", len(req.Cursor))
	}
	text, ok := b.endKeys.unseal(cursorText, req.Cursor)
	if !ok || json.Unmarshal(text, &c) != nil {
		return cursor{}, invalid("cursor", "is not one of this broker's; send the next_cursor of the page before as it came, or none to begin")
	}
	if !slices.Equal(c.List, req.digest(grants)) {
		return cursor{}, invalid("cursor", "is of a list with another filter; send the filter that it came with, or no cursor to begin")
	}
	if epoch := b.view.epoch(); c.Epoch != epoch {
		return cursor{}, invalid("cursor", "is of a list that is no more: the broker's store has begun another data set; send none to begin again")
	}
	return c, nil
}
