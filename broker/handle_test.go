package broker_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/errandhq/errand/broker"
)

// FuzzParseHandle: it reads what String writes, exactly, and nothing else.
func FuzzParseHandle(f *testing.F) {
	good := "hdl_e30." + strings.Repeat("A", 43)
	for _, text := range []string{
		"", good, good + "A", good[1:], good[:len(good)-1], "hdl_", "hdl_.", "hdl_." + strings.Repeat("A", 43), good[:len(good)-1] + "B", good + "=", good + "\n",
		"hdl_e3\n0." + strings.Repeat("A", 43), "hdl_e31." + strings.Repeat("A", 43), strings.ToUpper(good), strings.Replace(good, ".", "..", 1), strings.Repeat(good, 100),
		"hdl_" + strings.Repeat("e30A", 1012) + "." + strings.Repeat("A", 43),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		handle, err := broker.ParseHandle(text)
		switch {
		case err == nil && handle.String() != text:
			t.Errorf("%q is read as %q", text, handle.String())
		case err != nil && (handle != broker.Handle{} || len(err.Error()) > 200 || !errors.Is(err, broker.ErrInvalid)):
			t.Errorf("%q: %v with %q", text, err, handle.String())
		case err == nil && len(text) > broker.MaxHandleBytes:
			t.Errorf("a handle of %d bytes", len(text))
		}
	})
}

// TestAHandleThatWasTouchedIsNone: whichever byte is another one, or missing, or too many.
func TestAHandleThatWasTouchedIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, newFaulty(t), nil)
		a := h.begin(report, nil)
		d := h.delegate(report, a.Task.ID, night)
		text := d.Handle.String()
		try := func(name, text string) {
			t.Helper()
			handle, err := broker.ParseHandle(text)
			if err == nil {
				_, err = h.tryJoin(night, handle, nil)
			}
			if bad := (*broker.Invalid)(nil); !errors.As(err, &bad) || bad.Field != "handle" {
				t.Fatalf("%s: %v", name, err)
			}
		}
		const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		for i := range text {
			for _, c := range []byte{letters[(strings.IndexByte(letters, text[i])+1)%64], letters[(strings.IndexByte(letters, text[i])+33)%64], '.', '=', '\n', ' ', 0, 0xff, text[i] ^ 0x20} {
				if c != text[i] {
					try("another byte", text[:i]+string([]byte{c})+text[i+1:])
				}
			}
			try("cut", text[:i])
			try("cut in front", text[i+1:])
			try("left out", text[:i]+text[i+1:])
			try("twice", text[:i+1]+text[i:])
		}
		for c := range 256 {
			try("appended", text+string([]byte{byte(c)}))
			try("put in front", string([]byte{byte(c)})+text)
		}
		// What is in it is there to be read, and not to be changed.
		payload, mac, _ := strings.Cut(strings.TrimPrefix(text, "hdl_"), ".")
		said, err := base64.RawURLEncoding.DecodeString(payload)
		if err != nil {
			t.Fatal(err)
		}
		for from, to := range map[string]string{
			"batch/night": "small", `"orders:read"`: `"orders:read","orders:write"`, `"expires":`: `"expires":9`, "spiffe://prod/report": "spiffe://prod/small", "{": "{ ",
		} {
			changed := strings.Replace(string(said), from, to, 1)
			if changed == string(said) {
				t.Fatalf("%s has no %s", said, from)
			}
			try(to, "hdl_"+base64.RawURLEncoding.EncodeToString([]byte(changed))+"."+mac)
		}
		h.join(night, d, nil) // nothing of this has used it
	})
}

// TestHandlesSayWhatWasDelegated, whatever that is, up to their size.
func TestHandlesSayWhatWasDelegated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, newFaulty(t), func(c *broker.Config) { c.Registry = wide(t, "") })
		strange := broker.Details{"{\"actions\":[\"a<b\",\"\u2028\",\"é\"],\"type\":\"customer\"}", `{"type":"payment"}`}
		a := h.begin("chief", func(r *broker.BeginRequest) { r.Ceiling.Details = strange })
		d, err := h.tryDelegate("chief", a.Task.ID, broker.Delegation{
			To: workload("clerk").ID, Purpose: "a <purpose> \u2028\x01 & more", Ceiling: broker.Ceiling{Audiences: broker.Audiences{"orders"}, Details: strange},
		})
		if err != nil {
			t.Fatal(err)
		}
		handle, err := broker.ParseHandle(d.Handle.String())
		if err != nil || handle != d.Handle {
			t.Errorf("read again: %v", err)
		}
		b := h.join("clerk", d, func(r *broker.BeginRequest) { r.Ceiling.Details = strange })
		if !equal(b.Task.Ceiling.Details, strange) {
			t.Errorf("got %q; want %q", b.Task.Ceiling.Details, strange)
		}
		// The purpose pads it to the limit. A control takes six bytes of JSON, and any other letter one.
		sized := func(n int) (broker.Delegated, error) {
			return h.tryDelegate("chief", a.Task.ID, broker.Delegation{To: workload("clerk").ID, Purpose: "p" + strings.Repeat("\x01", n/6) + strings.Repeat("p", n%6)})
		}
		last := 0
		for n := 2000; ; n++ {
			d, err := sized(n)
			if err == nil {
				last = len(d.Handle.String())
				continue
			}
			if bad := (*broker.Invalid)(nil); !errors.As(err, &bad) || bad.Field != "purpose" || !strings.Contains(bad.Detail, "4096") {
				t.Errorf("%v", err)
			}
			break
		}
		if last > broker.MaxHandleBytes || last < broker.MaxHandleBytes-2 {
			t.Errorf("the longest handle has %d bytes", last)
		}
		if _, err := broker.ParseHandle(d.Handle.String() + strings.Repeat("A", broker.MaxHandleBytes)); !errors.Is(err, broker.ErrInvalid) || !strings.Contains(err.Error(), "4096") {
			t.Errorf("longer than any: %v", err)
		}
	})
}
