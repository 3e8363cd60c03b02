package keys_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/errandhq/errand/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	life = 15 * time.Minute
	typ  = "at+jwt"
)

// failer is what *testing.T, *testing.B and *rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newRing(t failer, config keys.Config) *keys.Ring {
	t.Helper()
	if config.Type == "" {
		config.Type = typ
	}
	if config.Life == 0 {
		config.Life = life
	}
	ring, err := keys.New(config)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return ring
}

// run runs the ring until the returned function is called.
func run(t failer, ring *keys.Ring) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- ring.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatalf("Run returned %v; want the context's error", err)
		}
	}
}

func signer(t failer, ring *keys.Ring) *keys.Signer {
	t.Helper()
	s, err := ring.Signer()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return s
}

func sign(t failer, s *keys.Signer) string {
	t.Helper()
	token, err := s.Sign([]byte(`{"iss":"https://issuer.test"}`))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return token
}

// parse reads a set with go-jose's own parser.
func parse(t failer, set keys.Set) jose.JSONWebKeySet {
	t.Helper()
	var parsed jose.JSONWebKeySet
	if err := json.Unmarshal(set.JSON, &parsed); err != nil {
		t.Fatalf("the set is not a JWK Set: %v\n%s", err, set.JSON)
	}
	return parsed
}

func published(t failer, ring *keys.Ring) []string {
	t.Helper()
	var kids []string
	for _, k := range parse(t, ring.Set()).Keys {
		kids = append(kids, k.KeyID)
	}
	return kids
}

// verifies reports whether a verifier that has that set accepts the token's signature.
func verifies(t failer, set jose.JSONWebKeySet, token string) bool {
	t.Helper()
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256})
	if err != nil {
		t.Fatalf("the token is not a JWS: %v", err)
	}
	header := jws.Signatures[0].Protected
	found := set.Key(header.KeyID)
	if len(found) != 1 || found[0].Algorithm != header.Algorithm {
		return false
	}
	_, err = jws.Verify(&found[0])
	return err == nil
}

// inState returns the keys of the ring that are in that state.
func inState(ring *keys.Ring, state keys.State) []keys.Key {
	return slices.DeleteFunc(ring.Keys(), func(k keys.Key) bool { return k.State != state })
}

// only returns the one key in that state.
func only(t failer, ring *keys.Ring, state keys.State) keys.Key {
	t.Helper()
	found := inState(ring, state)
	if len(found) != 1 {
		t.Fatalf("%d keys are %s; want 1: %+v", len(found), state, ring.Keys())
	}
	return found[0]
}

// sleep lets time pass in a bubble, and Run act on it.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
