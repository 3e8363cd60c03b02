package verify

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestEvents(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []event
	}{
		"one":               {"event: beat\nid: 1.2\ndata: {}\n\n", []event{{"beat", "1.2", []byte("{}")}}},
		"CR LF":             {"event: beat\r\ndata: x\r\n\r\ndata: y\r\n\r\n", []event{{"beat", "", []byte("x")}, {"", "", []byte("y")}}},
		"CR":                {"data: x\r\rdata: y\r\r", []event{{"", "", []byte("x")}, {"", "", []byte("y")}}},
		"two lines of data": {"data: a\ndata: b\n\n", []event{{"", "", []byte("a\nb")}}},
		"no space":          {"data:a\ndata:  b\n\n", []event{{"", "", []byte("a\n b")}}},
		"data is empty":     {"data\n\n", []event{{"", "", []byte("")}}},
		"no data":           {"event: x\nid: 7\n\ndata: y\n\n", []event{{"", "", []byte("y")}}},
		"id is not kept":    {"id: 7\ndata: x\n\ndata: y\n\n", []event{{"", "7", []byte("x")}, {"", "", []byte("y")}}},
		"id with NUL":       {"id: 7\x00\ndata: x\n\n", []event{{"", "", []byte("x")}}},
		"comments":          {": hello\n:\ndata: x\n: there\n\n", []event{{"", "", []byte("x")}}},
		"unknown fields":    {"retry: 5\nfoo\ndatax: y\ndata: x\n\n", []event{{"", "", []byte("x")}}},
		"byte order mark":   {"\ufeffdata: x\n\n\ufeffdata: y\n\n", []event{{"", "", []byte("x")}}},
		"ends within":       {"data: x\n\ndata: y\n", []event{{"", "", []byte("x")}}},
		"empty":             {"", nil},
		"blank lines":       {"\n\n\r\n\r\r\n", nil},
		"just fits":         {"data: " + strings.Repeat("x", maxEventBytes-6) + "\n\n", []event{{"", "", []byte(strings.Repeat("x", maxEventBytes-6))}}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(c.text), iotest.OneByteReader(strings.NewReader(c.text))} {
				var got []event
				stream := newEvents(r)
				e, err := stream.next()
				for ; err == nil; e, err = stream.next() {
					got = append(got, e)
				}
				if err != io.EOF {
					t.Error(err)
				}
				// cmp takes seconds for a megabyte.
				if !reflect.DeepEqual(c.want, got) {
					t.Errorf("got %d events, want %d: %.200q", len(got), len(c.want), got)
				}
			}
		})
	}
}

func TestEventsTooLong(t *testing.T) {
	for name, text := range map[string]string{
		"line":              "data: " + strings.Repeat("x", maxEventBytes-5) + "\n\n",
		"line without end":  strings.Repeat("x", 3*maxEventBytes),
		"event":             strings.Repeat("data: "+strings.Repeat("x", 1018)+"\n", 1024) + "data:\n\n",
		"comments for ever": strings.Repeat(": "+strings.Repeat("x", 1022)+"\n", 2048),
	} {
		if _, err := newEvents(strings.NewReader(text)).next(); !errors.Is(err, errEventTooLong) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzSSE never panics, never returns an event longer than the limit, and reads the same however
// the network cuts the text into pieces.
func FuzzSSE(f *testing.F) {
	for _, seed := range []string{"event: beat\nid: 1.0\ndata: {\"position\":\"1.0\"}\n\n", "data: x\r\rdata:y\r\n\r\n", "\ufeff:\n\ndata\n\n", "id: \x00\ndata: \xff\n\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		whole, pieces := newEvents(strings.NewReader(text)), newEvents(iotest.OneByteReader(strings.NewReader(text)))
		for {
			a, errA := whole.next()
			b, errB := pieces.next()
			if !reflect.DeepEqual(a, b) || !errors.Is(errA, errB) {
				t.Fatalf("%q, %v, and in pieces %q, %v", a, errA, b, errB)
			}
			if errA != nil {
				return
			}
			if len(a.data) > maxEventBytes || strings.ContainsAny(a.name+a.id, "\r\n") {
				t.Fatalf("event %q of %d bytes", a.name, len(a.data))
			}
			_, _ = parseFeedEvent(a.data)
		}
	})
}

// FuzzJWKS never panics, and never lets through a key that does not fit its algorithm.
func FuzzJWKS(f *testing.F) {
	for _, seed := range []string{
		`{"keys":[]}`, `{}`, `{"keys":[{"kty":"oct","k":"AA"}]}`,
		`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"a","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"b","use":"sig","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, err := parseKeys(body)
		if (keys == nil) == (err == nil) || len(keys) > maxKeys {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		for kid, k := range keys {
			if !isKeyID(kid) || !isAlgorithm(k.algorithm) || k.public == nil {
				t.Fatalf("key %q: %+v", kid, k)
			}
			if _, err := k.verify("e30.e30.AA", string(k.algorithm)); err == nil {
				t.Fatal("it verifies anything")
			}
		}
	})
}
