package wire

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// FeedSnapshot is everything that is denied for one audience.
type FeedSnapshot = FeedEvent

// FeedEvent is one delivery of the feed: the position that it brings the reader to, and what is
// new. Filtering by audience leaves no gap, since the position is always the whole of it. One without
// a position, and without the id of a server-sent event, moves no reader: its entries are in force on
// a replica whose store does not have them yet. They come once more with a position, when it has.
type FeedEvent struct {
	Position string      `json:"position"`
	Entries  []FeedEntry `json:"entries,omitempty"`
}

// FeedEntry is one denial. A reader unites it with what it knows and drops it at Until, never
// before. An unknown Kind makes the reader deny everything from before the entry.
type FeedEntry struct {
	Shard  int       `json:"shard"`
	Number uint64    `json:"number"`       // 0 while the store does not have it
	Kind   string    `json:"kind"`         // "grant", "task", "key", "all" or "selector"
	ID     string    `json:"id,omitempty"` // of "grant", "task" and "key"
	Until  time.Time `json:"until"`

	// Of "selector": every part that is there must match. It kills tokens of its shard with a
	// number below Number, as "all" does.
	Subject  string `json:"subject,omitempty"` // a SPIFFE ID, or one that ends in /*
	Audience string `json:"audience,omitempty"`
	Scope    string `json:"scope,omitempty"`
}

// Kinds of feed entry.
const (
	KindGrant    = "grant"
	KindTask     = "task"
	KindKey      = "key"
	KindAll      = "all"
	KindSelector = "selector"
)

// FeedPosition answers a reader that wants to know how fresh it is. The reader is fresh as of the
// moment that it sent the nonce, less Age, once it has applied Position.
type FeedPosition struct {
	Nonce    string `json:"nonce"`
	Position string `json:"position"`
	AgeMS    int64  `json:"age_ms"` // how old the broker's own reading is
}

// Limits of one UsageReport. One more is refused.
const (
	MaxUsageGrants = 1000
	MaxUsageBytes  = 1 << 20 // of its JSON
)

// AckRequest says how far a verifier is. It sends one when it has applied entries, at most four a second; some seconds
// after its position has moved otherwise; and one each 15 s if nothing else. One of which nothing is heard for a minute is forgotten.
type AckRequest struct {
	ID       string `json:"id"`        // of this instance, fresh and random at its start: 1 to 64 letters, digits, - and _
	Position string `json:"position"`  // everything up to here is in force
	MaxStale int64  `json:"max_stale"` // seconds after which it refuses what it has not heard about; 0 if it accepts
	Version  string `json:"version,omitempty"`

	// Closed is its good-bye: it accepts nothing any more. It needs no Position.
	Closed bool `json:"closed,omitempty"`
}

// UsageReport is what a verifier has done with the tokens of its audience since its last report. Each
// summary becomes one audit event, whose ID follows from Batch and the grant: a report that is sent
// again, since its answer was lost, says nothing new to whoever counts an event's ID once.
type UsageReport struct {
	Batch  string       `json:"batch"` // 1 to 64 letters, digits, - and _, fresh and random for each report
	Grants []GrantUsage `json:"grants,omitempty"`
	Lost   int64        `json:"lost,omitempty"` // checks that are in no report, since there was no room
}

// GrantUsage is a summary of the checks of one grant's token.
type GrantUsage struct {
	Grant   string       `json:"grant_id"`
	First   time.Time    `json:"first_used_at"` // by the verifier's clock, as Last
	Last    time.Time    `json:"last_used_at"`
	Allowed int64        `json:"allowed"`
	Refused int64        `json:"refused"`
	Scopes  []ScopeUsage `json:"scopes,omitempty"` // those that the checks asked for
}

// ScopeUsage counts the checks that asked for a scope.
type ScopeUsage struct {
	Scope   string `json:"scope"`
	Allowed int64  `json:"allowed"`
	Refused int64  `json:"refused"`
}

// Metadata is the part of the issuer's RFC 8414 document that the project reads and writes.
type Metadata struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	BoundTokens   bool     `json:"tls_client_certificate_bound_access_tokens"`
	Algorithms    []string `json:"errand_token_signing_alg_values_supported,omitempty"`
	Feed          string   `json:"errand_feed"`   // URL of the feed, on the workload listener
	Broker        string   `json:"errand_broker"` // URL of the workload listener
}

// Position is a place in the feeds of all shards: an epoch and one number for each shard. Its text
// is "epoch.n0.n1…".
type Position struct {
	Epoch   uint64
	Numbers []uint64
}

// MaxShards bounds the numbers of a position.
const MaxShards = 100

// ErrPosition says that a text is not a position.
var ErrPosition = errors.New("not a feed position")

// ParsePosition reads exactly what String writes.
func ParsePosition(s string) (Position, error) {
	parts := strings.SplitN(s, ".", MaxShards+2)
	if len(parts) < 2 || len(parts) > MaxShards+1 {
		return Position{}, fmt.Errorf("%w: it has %d parts; an epoch and 1 to %d numbers are needed", ErrPosition, len(parts), MaxShards)
	}
	numbers := make([]uint64, len(parts))
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != part {
			return Position{}, fmt.Errorf("%w: part %d is not a decimal number", ErrPosition, i)
		}
		numbers[i] = n
	}
	return Position{Epoch: numbers[0], Numbers: numbers[1:]}, nil
}

// String is the position's text.
func (p Position) String() string {
	b := strconv.AppendUint(nil, p.Epoch, 10)
	for _, n := range p.Numbers {
		b = strconv.AppendUint(append(b, '.'), n, 10)
	}
	return string(b)
}

// Covers reports whether a reader at p has everything that one at q has. Positions of different
// epochs or shard counts cover nothing of each other.
func (p Position) Covers(q Position) bool {
	if p.Epoch != q.Epoch || len(p.Numbers) != len(q.Numbers) {
		return false
	}
	for i, n := range q.Numbers {
		if p.Numbers[i] < n {
			return false
		}
	}
	return true
}

// Shard returns the shard in an ID of a task or grant, and false when it is neither.
func Shard(id string) (int, bool) {
	if len(id) < 6 || id[:4] != "tsk_" && id[:4] != "gnt_" {
		return 0, false
	}
	n, err := strconv.ParseUint(id[4:6], 10, 8)
	return int(n), err == nil
}
