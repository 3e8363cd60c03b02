package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/errandhq/errand/broker"
)

// Line is one event as the log has it. Members that do not apply are left out.
type Line struct {
	ID   string    `json:"id"`
	Kind string    `json:"kind"`
	Time time.Time `json:"time"`

	Workload string `json:"workload,omitempty"`
	Owner    string `json:"owner,omitempty"`
	Address  string `json:"address,omitempty"`
	Actor    string `json:"actor,omitempty"`

	Task     string   `json:"task,omitempty"`
	TaskPath []string `json:"task_path,omitempty"`
	TaskName string   `json:"task_name,omitempty"`
	Purpose  string   `json:"purpose,omitempty"`

	Ticket  string            `json:"ticket,omitempty"`
	Ref     *Ref              `json:"ref,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Context json.RawMessage   `json:"context,omitempty"`
	Details []json.RawMessage `json:"authorization_details,omitempty"`

	State    string `json:"state,omitempty"`
	Cause    string `json:"cause,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Grants   int    `json:"grants,omitempty"`
	SubTasks int    `json:"sub_tasks,omitempty"`

	Delegators []string `json:"delegators,omitempty"`
	Delegation string   `json:"delegation,omitempty"`
	To         string   `json:"to,omitempty"`
	Audiences  []string `json:"audiences,omitempty"`
	Holder     int      `json:"holder,omitempty"`

	Grant      string     `json:"grant,omitempty"`
	Audience   string     `json:"audience,omitempty"`
	Scope      string     `json:"scope,omitempty"`
	Expires    *time.Time `json:"expires,omitempty"`
	Thumbprint string     `json:"x5t#S256,omitempty"`
	Key        string     `json:"kid,omitempty"`

	Decision string `json:"decision,omitempty"`
	Allowed  bool   `json:"allowed,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Revision string `json:"policy_revision,omitempty"`

	Count int        `json:"count,omitempty"`
	First *time.Time `json:"first,omitempty"`

	Selector *Selector `json:"selector,omitempty"`
	Lock     string    `json:"lock,omitempty"`
	Unsure   bool      `json:"unsure,omitempty"`

	Reconciled bool `json:"reconciled,omitempty"` // by another process than the one that did it; perhaps by both

	Revocation string   `json:"revocation,omitempty"`
	Applied    *Applied `json:"applied,omitempty"`

	Usage *Usage `json:"usage,omitempty"`
	Lost  int64  `json:"lost,omitempty"`
}

// Usage is what a verifier says it did with a grant's token.
type Usage struct {
	First   time.Time    `json:"first_used_at"`
	Last    time.Time    `json:"last_used_at"`
	Allowed int64        `json:"allowed"`
	Refused int64        `json:"refused"`
	Scopes  []ScopeUsage `json:"scopes,omitempty"`
}

// ScopeUsage counts the checks that asked for a scope.
type ScopeUsage struct {
	Scope   string `json:"scope"`
	Allowed int64  `json:"allowed"`
	Refused int64  `json:"refused"`
}

// Ref is what a task is in another system.
type Ref struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	URL  string `json:"url,omitempty"`
}

// Applied is what a mass revocation was about, and what it did.
type Applied struct {
	Selector string `json:"selector"` // as the query of a list
	What     string `json:"what"`
	Counted  *int   `json:"counted,omitempty"` // live grants right before
	Grants   int    `json:"grants"`            // ended by ID
	Tasks    int    `json:"tasks"`             // ended
	Entries  int    `json:"entries"`
	Left     string `json:"left,omitempty"` // what was not done
}

// Selector is what an operator's revocation or lock named.
type Selector struct {
	Subject  string `json:"subject,omitempty"`
	Audience string `json:"audience,omitempty"`
	Scope    string `json:"scope,omitempty"`
}

func newLine(e broker.Event) Line {
	l := Line{
		ID: string(e.ID), Kind: string(e.Kind), Time: e.Time.UTC(),
		Workload: e.Workload, Owner: e.Owner, Address: e.Address, Actor: e.Actor,
		Task: string(e.Task), TaskName: e.TaskName, Purpose: e.Purpose,
		Ticket: e.Ticket, Labels: e.Labels, Context: json.RawMessage(e.Context), Details: e.Details.JSON(),
		State: string(e.State), Cause: string(e.Cause), Reason: e.Reason, Grants: e.Grants, SubTasks: e.SubTasks,
		Delegators: e.Delegators, Delegation: string(e.Delegation), To: e.To, Audiences: e.Audiences, Holder: e.Holder,
		Grant: string(e.Grant), Audience: e.Audience, Scope: e.Scopes.String(), Thumbprint: e.Thumbprint, Key: e.Key,
		Decision: string(e.Decision), Allowed: e.Allowed, Rule: e.Rule, Revision: e.Revision, Count: e.Count, Lock: string(e.Lock), Unsure: e.Unsure, Reconciled: e.Reconciled,
	}
	for _, id := range e.TaskPath {
		l.TaskPath = append(l.TaskPath, string(id))
	}
	if e.Ref != (broker.TaskRef{}) {
		ref := Ref(e.Ref)
		l.Ref = &ref
	}
	if !e.Expires.IsZero() {
		expires := e.Expires.UTC()
		l.Expires = &expires
	}
	if !e.First.IsZero() {
		first := e.First.UTC()
		l.First = &first
	}
	if e.Selector != (broker.Selector{}) {
		l.Selector = &Selector{Subject: e.Selector.Subject, Audience: e.Selector.Audience, Scope: e.Selector.Scope}
	}
	l.Usage, l.Lost = newUsage(e.Usage), e.Lost
	l.Revocation = string(e.Revocation)
	if m := e.Mass; m != nil {
		l.Applied = &Applied{
			Selector: m.Filter.String(), What: string(m.What), Counted: m.Counted, Grants: m.Grants, Tasks: m.Tasks, Entries: m.Entries, Left: m.Left,
		}
	}
	return l
}

func newUsage(u *broker.GrantUsage) *Usage {
	if u == nil {
		return nil
	}
	out := &Usage{First: u.First.UTC(), Last: u.Last.UTC(), Allowed: u.Allowed, Refused: u.Refused}
	for _, s := range u.Scopes {
		out.Scopes = append(out.Scopes, ScopeUsage{Scope: s.Scope, Allowed: s.Allowed, Refused: s.Refused})
	}
	return out
}

// Printable returns JSON so that whoever looks at it sees what is there, also in a terminal: each character
// that does not print itself is escaped. JSON has those in strings alone, but for the white space between
// values, which stays.
func Printable(text []byte) []byte {
	hidden := func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\r' }
	if isPlain(text) || !bytes.ContainsFunc(text, hidden) {
		return text
	}
	var out []byte
	for _, r := range string(text) {
		if !hidden(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, `\u%04x`, unit)
		}
	}
	return out
}

// isPlain reports whether a text has nothing but what prints itself in ASCII, as most have.
func isPlain(text []byte) bool {
	for _, b := range text {
		if b < ' ' || b > '~' {
			return false
		}
	}
	return true
}
