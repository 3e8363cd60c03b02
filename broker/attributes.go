package broker

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what a task says about itself, in bytes where nothing else is said.
const (
	MaxTicket     = 128
	MaxRefKind    = 64
	MaxRefID      = 256
	MaxRefURL     = 1024
	MaxLabels     = 16 // labels of one task
	MaxLabelKey   = 64
	MaxLabelValue = 128
	MaxContext    = 4 << 10 // in canonical form
	MaxNote       = 256
)

// Attributes are what a task says about itself beside its name and purpose. All of them may be
// empty, and none is in a token.
type Attributes struct {
	Ticket  string            // a change or incident reference, as "CHG-2117"
	Ref     TaskRef           // what the task is in another system
	Labels  map[string]string // for search
	Context Object            // what a policy may look at
}

// TaskRef names what a task is in another system, so that whoever watches that can end the task.
// Kind and ID go together.
type TaskRef struct {
	Kind string // as "k8s/job"
	ID   string // as the system knows it, a UID
	URL  string // where people look at it; may be empty
}

// IsZero reports whether there is nothing.
func (a Attributes) IsZero() bool {
	return a.Ticket == "" && a.Ref == TaskRef{} && len(a.Labels) == 0 && a.Context == ""
}

// Clone returns a copy that shares no memory with a.
func (a Attributes) Clone() Attributes {
	a.Labels = maps.Clone(a.Labels)
	return a
}

// check does not look at the context: that was checked when it was made.
func (a Attributes) check() error {
	if err := checkLine("ticket", a.Ticket, MaxTicket); err != nil {
		return err
	}
	if err := a.Ref.check(); err != nil {
		return err
	}
	return checkLabels(a.Labels)
}

func (r TaskRef) check() error {
	switch {
	case r == TaskRef{}:
		return nil
	case r.Kind == "":
		return invalid("ref.kind", `is empty; name the kind of thing, as "k8s/job"`)
	case r.ID == "":
		return invalid("ref.id", "is empty; say which one it is")
	}
	if err := checkName("ref.kind", r.Kind, MaxRefKind); err != nil {
		return err
	}
	if err := checkBytes("ref.id", r.ID, MaxRefID, isScopeByte, "printable ASCII without space, quote and backslash"); err != nil {
		return err
	}
	return checkURL("ref.url", r.URL)
}

// checkURL wants one that can be shown to people as a link: no script, and no password.
func checkURL(field, text string) error {
	if text == "" {
		return nil
	}
	if err := checkBytes(field, text, MaxRefURL, isScopeByte, "printable ASCII without space, quote and backslash"); err != nil {
		return err
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return invalid(field, "is not a URL that begins with https:// or http:// and a host")
	}
	if u.User != nil {
		return invalid(field, "has a user in it; leave that out, since others will see it")
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return invalid("labels", "has %d members; at most %d are allowed", len(labels), MaxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if key == "" {
			return invalid("labels", "has an empty name; leave it out, or name it")
		}
		if err := checkName("labels", key, MaxLabelKey); err != nil {
			return err
		}
		if err := checkLine("labels."+key, labels[key], MaxLabelValue); err != nil {
			return err
		}
	}
	return nil
}

// checkName allows what needs no quotes anywhere: small letters, digits and . _ - /
func checkName(field, text string, limit int) error {
	return checkBytes(field, text, limit, func(c byte) bool {
		return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("._-/", c) >= 0
	}, "small letters, digits and . _ - /")
}

func checkBytes(field, text string, limit int, ok func(byte) bool, allowed string) error {
	if len(text) > limit {
		return invalid(field, "has %d bytes; at most %d are allowed", len(text), limit)
	}
	for i := range len(text) {
		if !ok(text[i]) {
			return invalid(field, "has a character that is not allowed at byte %d of %q; use %s", i, text, allowed)
		}
	}
	return nil
}

// checkLine wants what can be shown in one line as it is: no controls, and nothing that changes the
// direction of what follows.
func checkLine(field, text string, limit int) error {
	switch {
	case len(text) > limit:
		return invalid(field, "has %d bytes; at most %d are allowed", len(text), limit)
	case !utf8.ValidString(text):
		return invalid(field, "is not valid UTF-8")
	}
	for i, r := range text {
		if !unicode.IsPrint(r) {
			return invalid(field, "has the character %s at byte %d, which cannot be printed; use one line of plain text", fmt.Sprintf("%U", r), i)
		}
	}
	return nil
}
