package sse

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEvents(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []Event
	}{
		"one":               {"event: beat\nid: 1.2\ndata: {}\n\n", []Event{{"beat", "1.2", []byte("{}")}}},
		"CR LF":             {"event: beat\r\ndata: x\r\n\r\ndata: y\r\n\r\n", []Event{{"beat", "", []byte("x")}, {"", "", []byte("y")}}},
		"CR":                {"data: x\r\rdata: y\r\r", []Event{{"", "", []byte("x")}, {"", "", []byte("y")}}},
		"two lines of data": {"data: a\ndata: b\n\n", []Event{{"", "", []byte("a\nb")}}},
		"no space":          {"data:a\ndata:  b\n\n", []Event{{"", "", []byte("a\n b")}}},
		"data is empty":     {"data\n\n", []Event{{"", "", []byte("")}}},
		"no data":           {"event: x\nid: 7\n\ndata: y\n\n", []Event{{"", "", []byte("y")}}},
		"id is not kept":    {"id: 7\ndata: x\n\ndata: y\n\n", []Event{{"", "7", []byte("x")}, {"", "", []byte("y")}}},
		"id with NUL":       {"id: 7\x00\ndata: x\n\n", []Event{{"", "", []byte("x")}}},
		"comments":          {": hello\n:\ndata: x\n: there\n\n", []Event{{"", "", []byte("x")}}},
		"unknown fields":    {"retry: 5\nfoo\ndatax: y\ndata: x\n\n", []Event{{"", "", []byte("x")}}},
		"byte order mark":   {"\ufeffdata: x\n\n\ufeffdata: y\n\n", []Event{{"", "", []byte("x")}}},
		"ends within":       {"data: x\n\ndata: y\n", []Event{{"", "", []byte("x")}}},
		"empty":             {"", nil},
		"blank lines":       {"\n\n\r\n\r\r\n", nil},
		"just fits":         {"data: " + strings.Repeat("x", MaxBytes-6) + "\n\n", []Event{{"", "", []byte(strings.Repeat("x", MaxBytes-6))}}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(c.text), iotest.OneByteReader(strings.NewReader(c.text))} {
				var got []Event
				stream := New(r)
				e, err := stream.Next()
				for ; err == nil; e, err = stream.Next() {
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
		"line":              "data: " + strings.Repeat("x", MaxBytes-5) + "\n\n",
		"line without end":  strings.Repeat("x", 3*MaxBytes),
		"event":             strings.Repeat("data: "+strings.Repeat("x", 1018)+"\n", 1024) + "data:\n\n",
		"comments for ever": strings.Repeat(": "+strings.Repeat("x", 1022)+"\n", 2048),
	} {
		if _, err := New(strings.NewReader(text)).Next(); !errors.Is(err, ErrTooLong) {
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
		whole, pieces := New(strings.NewReader(text)), New(iotest.OneByteReader(strings.NewReader(text)))
		for {
			a, errA := whole.Next()
			b, errB := pieces.Next()
			if !reflect.DeepEqual(a, b) || !errors.Is(errA, errB) {
				t.Fatalf("%q, %v, and in pieces %q, %v", a, errA, b, errB)
			}
			if errA != nil {
				return
			}
			if len(a.Data) > MaxBytes || strings.ContainsAny(a.Name+a.ID, "\r\n") {
				t.Fatalf("event %q of %d bytes", a.Name, len(a.Data))
			}
		}
	})
}
