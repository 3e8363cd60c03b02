package verify_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk/verify"
)

// FuzzVerify never panics, and accepts nothing but what the issuer signed: every accepted text is
// the signed part of the one good token, with a signature that may be its twin.
func FuzzVerify(f *testing.F) {
	b := newBroker(f, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	parts := strings.Split(token, ".")
	for _, seed := range []string{token, "", "..", token + ".", parts[0] + ".." + parts[2], parts[0] + "." + parts[1] + ".", "eyJhbGciOiJub25lIn0." + parts[1] + "."} {
		f.Add(seed)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel() // unknown kids are not waited for
	f.Fuzz(func(t *testing.T, text string) {
		g, err := v.Verify(canceled, text, b.peer())
		if (g == nil) == (err == nil) {
			t.Fatalf("%v and %v", g, err)
		}
		if err == nil && !strings.HasPrefix(text, parts[0]+"."+parts[1]+".") {
			t.Fatalf("accepted %q", text)
		}
		if err != nil && errors.Is(err, verify.ErrRevoked) {
			t.Fatalf("%q got as far as the feed", text)
		}
	})
}
