package verify_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// notThere are the numbers between 261 and 280 that are about a status list, which this project does
// not have: its feed is JSON over mutual TLS with a broker whose SPIFFE ID is pinned.
//
//	261  bits=3      there are no bits; an entry names what is dead
//	262  base64url   nothing is encoded
//	266  sub is uri  who the sender is, TLS says: TestBrokerIsPinned
//	271  other key   the feed is not signed; the same test
var notThere = []int{261, 262, 266, 271}

// said is what the broker may say in the stream, and what comes of it.
type said struct {
	name string
	text string
	then string // "snapshot": the verifier takes a new one; "again": it opens the stream again; "ignored": it reads on
}

func sayings() []said {
	at, until := fmt.Sprintf("%d.5", uint64(epoch)), time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	event := func(name, id, position, entries string) string {
		return fmt.Sprintf("event: %s\nid: %s\ndata: {\"position\":%q,\"entries\":[%s]}\n\n", name, id, position, entries)
	}
	beat := func(position string) string { return event(wire.EventBeat, position, position, "") }
	entry := func(members string) string {
		return event(wire.EventDenials, at, at, fmt.Sprintf(`{"number":6,"until":%q,%s}`, until, members))
	}
	return []said{
		{"265 an entry of a shard that is not there", entry(`"shard":1,"kind":"grant","id":"x"`), "snapshot"},
		{"265 an entry of shard -1", entry(`"shard":-1,"kind":"grant","id":"x"`), "snapshot"},
		{"265 an entry that names nothing", entry(`"shard":0,"kind":"task"`), "snapshot"},
		{"265 an entry of no end", event(wire.EventDenials, at, at, `{"shard":0,"number":6,"kind":"grant","id":"x"}`), "snapshot"},
		{"269 a number lower than seen", beat(fmt.Sprintf("%d.4", uint64(epoch))), "again"},
		{"269 no shard", beat(strconv.FormatUint(epoch, 10)), "snapshot"},
		{"269 a shard too many", beat(at + ".0"), "again"},
		{"270 an older epoch", beat(fmt.Sprintf("%d.9", epoch-1)), "again"},
		{"270 epoch 0", beat("0.9"), "snapshot"},
		{"274 a line of 10 MiB", "data: " + strings.Repeat("x", 10<<20) + "\n\n", "snapshot"},
		{"274 a line of 10 MiB without end", strings.Repeat("x", 10<<20), "snapshot"},
		{"274 an event of 10 MiB", strings.Repeat("data: "+strings.Repeat("x", 1<<10)+"\n", 10<<10) + "\n", "snapshot"},
		{"274 comments of 10 MiB", strings.Repeat(": "+strings.Repeat("x", 1<<10)+"\n", 10<<10), "snapshot"},
		{"275 an id that goes up and down", beat(fmt.Sprintf("%d.7", uint64(epoch))) + beat(at), "again"},
		{"275 an id that is not the position", event(wire.EventBeat, at+"9", at, ""), "snapshot"},
		{"275 an id with a sign", event(wire.EventBeat, fmt.Sprintf("%d.+5", uint64(epoch)), fmt.Sprintf("%d.+5", uint64(epoch)), ""), "snapshot"},
		{"275 an id beyond 2^64", event(wire.EventBeat, fmt.Sprintf("%d.18446744073709551616", uint64(epoch)), fmt.Sprintf("%d.18446744073709551616", uint64(epoch)), ""), "snapshot"},
		{"276 an unknown event", "event: news\nid: 7\ndata: anything\n\n", "ignored"},
		{"276 an event without a type", "id: " + at + "\ndata: {}\n\n", "ignored"},
		{"276 an event of the type in capitals", strings.Replace(beat(at), "beat", "BEAT", 1), "ignored"},
		{"278 not JSON", "event: denials\nid: " + at + "\ndata: <html>\n\n", "snapshot"},
	}
}

// TestAttackFeed is what one event of the stream can do: nothing but have the verifier look again. What
// is denied afterwards is heard, what was denied before stays so, and other tokens stay good.
func TestAttackFeed(t *testing.T) {
	for _, c := range sayings() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			b.position.Numbers = []uint64{5}
			b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00dddddddddddddddddddddddddd"})
			b.change(func() { b.position.Numbers = []uint64{5} })
			v := b.verifier(nil)
			eventually(t, "the stream is open", func() bool { return v.Status().Connected })
			before := v.Status()
			snaps, streams := b.snaps.Load(), b.streamed.Load()
			b.write(c.text)
			eventually(t, c.then, func() bool {
				switch c.then {
				case "snapshot":
					return b.snaps.Load() > snaps
				case "again":
					return b.streamed.Load() > streams && v.Status().Ignored > before.Ignored
				}
				return v.Status().Ignored > before.Ignored
			})
			if c.then == "ignored" && b.streamed.Load() != streams {
				t.Error("the stream was given up")
			}
			revoked := b.token(func(c map[string]any) { c["jti"] = "gnt_00dddddddddddddddddddddddddd" })
			if err := refused(t, v, b, revoked); !errors.Is(err, verify.ErrRevoked) {
				t.Errorf("what was revoked before: %v", err)
			}
			// A beat that said 7 has moved the position, truly or not; it may only go up.
			b.change(func() { b.position.Numbers = []uint64{8} })
			token := b.token(nil)
			goesTo(t, v, b, token, nil)
			b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
			goesTo(t, v, b, token, verify.ErrRevoked)
		})
	}
}

// TestAttackFeedNumbers: no number between 261 and 280 was forgotten.
func TestAttackFeedNumbers(t *testing.T) {
	there := map[int]bool{263: true, 264: true, 267: true, 268: true, 272: true, 273: true, 277: true, 278: true, 279: true, 280: true} // below
	for _, number := range notThere {
		there[number] = true
	}
	for _, c := range sayings() {
		number, _, _ := strings.Cut(c.name, " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		there[n] = true
	}
	for number := 261; number <= 280; number++ {
		if !there[number] {
			t.Errorf("number %d is missing", number)
		}
	}
}

// TestAttackSnapshot is 263, 264 and 272, and junk: a verifier does not start with it.
func TestAttackSnapshot(t *testing.T) {
	good := fmt.Sprintf(`{"position":"%d.0"}`, uint64(epoch))
	zipped := func(text string) string {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, _ = w.Write([]byte(text))
		_ = w.Close()
		return out.String()
	}
	for name, c := range map[string]struct{ encoding, body string }{
		"263 gzip that was not asked for": {"gzip", zipped(good)},
		"263 gzip that is broken":         {"gzip", zipped(good)[:20]},
		"263 deflate that is none":        {"deflate", "x"},
		"264 a bomb of 4 MiB":             {"gzip", zipped(good + strings.Repeat(" ", 4<<20))},
		"272 HTML":                        {"", "<!doctype html>"},
		"272 a JWT":                       {"", `"eyJhbGciOiJub25lIn0.e30."`},
		"278 no position":                 {"", `{}`},
		"278 a position of no shard":      {"", fmt.Sprintf(`{"position":"%d"}`, uint64(epoch))},
		"278 a position of 101 shards":    {"", fmt.Sprintf(`{"position":"%d%s"}`, uint64(epoch), strings.Repeat(".0", 101))},
		"278 position twice":              {"", `{"position":"1.0",` + good[1:]},
		"265 a shard that is not there":   {"", good[:len(good)-1] + `,"entries":[{"shard":1,"number":1,"kind":"all","until":"2999-01-01T00:00:00Z"}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			b.handle(wire.PathFeedSnapshot, func(w http.ResponseWriter, _ *http.Request) {
				if c.encoding != "" {
					w.Header().Set("Content-Encoding", c.encoding)
				}
				_, _ = w.Write([]byte(c.body))
			})
			if err := b.start(wire.PathFeedSnapshot); err == nil || strings.Contains(err.Error(), "last error: none") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestAttackStreamType is 272: what is not an event stream is not read as one.
func TestAttackStreamType(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	all := fmt.Sprintf(`{"position":"%d.1","entries":[{"shard":0,"number":1,"kind":"all","until":"2999-01-01T00:00:00Z"}]}`, uint64(epoch))
	asked := atomic.Int64{}
	b.handle(wire.PathFeed, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", wire.TypeJSON)
		fmt.Fprintf(w, "event: denials\nid: %d.1\ndata: %s\n\n", uint64(epoch), all)
	})
	v := b.verifier(nil)
	eventually(t, "it is tried again", func() bool { return asked.Load() > 1 })
	if v.Status().Connected || v.Status().Entries != 0 {
		t.Errorf("status %+v", v.Status())
	}
}

// TestAttackUntil is 267: an entry that is over before it comes denies nothing, and one that comes again
// with an earlier end ends no earlier (273).
func TestAttackUntil(t *testing.T) {
	b := newBroker(t, 1)
	var ahead atomic.Int64
	v := b.verifier(func(c *verify.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	token := b.token(func(c map[string]any) { c["exp"] = c["iat"].(int64) + 600 })
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID, Until: time.Now().Add(-time.Hour)})
	settled(t, v, b)
	if err := refused(t, v, b, token); err != nil {
		t.Errorf("267 an entry of the past: %v", err)
	}
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID, Until: time.Now().Add(10 * time.Minute)})
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID, Until: time.Now().Add(2 * time.Second)})
	settled(t, v, b)
	ahead.Store(int64(5 * time.Minute))
	eventually(t, "the view is fresh by the later clock", func() bool { return v.Ready() == nil })
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("273 an entry again, with an earlier end: %v", err)
	}
}

// TestAttackUnrevoking is 273: neither a snapshot nor an event takes back what was denied, in one epoch.
func TestAttackUnrevoking(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
	goesTo(t, v, b, token, verify.ErrRevoked)
	for range 3 {
		snaps := b.snaps.Load()
		b.change(func() { b.entries = nil })
		b.write("event: denials\nid: junk\ndata: {}\n\n")
		eventually(t, "a snapshot without it is taken", func() bool { return b.snaps.Load() > snaps && v.Status().Connected })
		settled(t, v, b)
		if err := refused(t, v, b, token); !errors.Is(err, verify.ErrRevoked) {
			t.Fatalf("a snapshot un-revoked a token: %v", err)
		}
	}
}

// TestAttackAge is 268: ages that make no sense prove nothing.
func TestAttackAge(t *testing.T) {
	for _, age := range []string{"-1", "9223372036854775807", "3600000", "1e3", `"5"`, "9223372036854775808"} {
		t.Run("268 age_ms "+age, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			b.handle(wire.PathFeedPosition, func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, `{"nonce":%q,"position":"%d.0","age_ms":%s}`, r.URL.Query().Get("nonce"), uint64(epoch), age)
			})
			if _, err := verify.New(within(t, 700*time.Millisecond), b.config()); err == nil {
				t.Error("it is fresh")
			}
		})
	}
}

// TestAttackTornEvent is 277: an event that the stream ends within is none; its denial comes with the
// next stream.
func TestAttackTornEvent(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	position := fmt.Sprintf("%d.1", uint64(epoch))
	var torn atomic.Int64
	b.handle(wire.PathFeed, func(w http.ResponseWriter, _ *http.Request) {
		torn.Add(1)
		w.Header().Set("Content-Type", wire.TypeEvents)
		fmt.Fprintf(w, "event: beat\nid: %d.0\ndata: {\"position\":\"%d.0\"}\n\nevent: beat\nid: %s\ndata: {\"position\":%q}\n", uint64(epoch), uint64(epoch), position, position)
	})
	v := b.verifier(nil)
	eventually(t, "several streams are torn", func() bool { return torn.Load() > 2 })
	if got := v.Status().Position; got == position {
		t.Errorf("half an event moved the position to %s", got)
	}
	token := b.token(nil)
	b.handle(wire.PathFeed, nil)
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	goesTo(t, v, b, token, verify.ErrRevoked)
}

// TestAttackUnknownPosition is 278 from the other side: a broker that does not know the position of its
// reader says so, and the reader takes a snapshot and goes on from there.
func TestAttackUnknownPosition(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	eventually(t, "the stream is open", func() bool { return v.Status().Connected })
	snaps := b.snaps.Load()
	var gone atomic.Bool
	b.handle(wire.PathFeed, func(w http.ResponseWriter, r *http.Request) {
		if !gone.Swap(true) {
			w.WriteHeader(http.StatusGone)
			return
		}
		b.serveStream(w, r)
	})
	b.write("event: reset\ndata: {}\n\n")
	eventually(t, "a snapshot is taken and the stream open", func() bool { return b.snaps.Load() > snaps && v.Status().Connected })
	token := b.token(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	goesTo(t, v, b, token, verify.ErrRevoked)
}

// TestAttackBurst is 279 through the wire: as many entries as fit, in events of a thousand, are all in
// force; one more makes the view stale, and nothing that it had is forgotten. TestViewMillion is a million.
func TestAttackBurst(t *testing.T) {
	t.Parallel()
	const most = 20_000
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxEntries = most })
	eventually(t, "the stream is open", func() bool { return v.Status().Connected })
	last := "gnt_00" + fmt.Sprintf("%026d", most)
	denyMany(t, v, b, most)
	token := b.token(func(c map[string]any) { c["jti"] = last })
	goesTo(t, v, b, token, verify.ErrRevoked)
	settled(t, v, b)
	if got := v.Status().Entries; got != most {
		t.Errorf("%d entries", got)
	}
	if err := refused(t, v, b, b.token(nil)); err != nil {
		t.Errorf("another token: %v", err)
	}
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00" + fmt.Sprintf("%026d", most+1)})
	goesTo(t, v, b, b.token(nil), verify.ErrStale)
}

// TestAttackSilence is 280: a stream that is open and says nothing is given up, and a verifier that
// hears neither that nor an answer to its nonces refuses everything.
func TestAttackSilence(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxStale = verify.MinMaxStale })
	token := b.token(nil)
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	silent := atomic.Int64{}
	b.handle(wire.PathFeedPosition, hang)
	b.handle(wire.PathFeed, func(w http.ResponseWriter, r *http.Request) {
		silent.Add(1)
		w.Header().Set("Content-Type", wire.TypeEvents)
		_ = http.NewResponseController(w).Flush()
		hang(w, r)
	})
	b.private.CloseClientConnections()
	goesTo(t, v, b, token, verify.ErrStale)
	eventually(t, "the silent stream is given up, and another one opened", func() bool { return silent.Load() > 1 })
}
