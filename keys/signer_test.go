package keys_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/errandhq/errand/keys"
)

func TestSign(t *testing.T) {
	const payload = `{"iss":"https://issuer.test","sub":"spiffe://prod/report"}`
	for _, algorithm := range []keys.Algorithm{keys.ES256, keys.Ed25519, keys.RS256} {
		t.Run(string(algorithm), func(t *testing.T) {
			ring := newRing(t, keys.Config{Algorithm: algorithm})
			s := signer(t, ring)
			token, err := s.Sign([]byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			parts := strings.Split(token, ".")
			if len(parts) != 3 {
				t.Fatalf("%d parts; want 3", len(parts))
			}
			var header map[string]any
			if err := json.Unmarshal(decode(t, parts[0]), &header); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]any{"alg": algorithm.Header(), "kid": s.KeyID(), "typ": typ}, header); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if got := string(decode(t, parts[1])); got != payload {
				t.Errorf("payload %s", got)
			}
			if !verifies(t, parse(t, ring.Set()), token) {
				t.Error("the published key does not verify it")
			}
			if verifies(t, parse(t, ring.Set()), token[:len(parts[0])+1]+"e30."+parts[2]) {
				t.Error("the published key verifies another payload")
			}
		})
	}
}

func decode(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What was under way at a rotation is finished; a signer that is kept for longer is of no use.
func TestSignAfterRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{})
		defer run(t, ring)()
		sleep(keys.DefaultPublish)
		held := signer(t, ring)
		if err := ring.Rotate(); err != nil {
			t.Fatal(err)
		}
		if current := signer(t, ring); current.KeyID() == held.KeyID() {
			t.Fatal("the ring still hands out the retired key")
		}
		sleep(keys.FinishTime - 1)
		token := sign(t, held)
		sleep(life)
		if !verifies(t, parse(t, ring.Set()), token) {
			t.Error("what was finished after the rotation is not verifiable to its end")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{})
		sleep(keys.DefaultPublish)
		held := signer(t, ring)
		if err := ring.Rotate(); err != nil {
			t.Fatal(err)
		}
		sleep(keys.FinishTime)
		if token, err := held.Sign([]byte("{}")); !errors.Is(err, keys.ErrNoKey) || token != "" {
			t.Errorf("it signed, error %v; want ErrNoKey", err)
		}
	})
}

func TestSignAfterRemoval(t *testing.T) {
	ring := newRing(t, keys.Config{})
	held := signer(t, ring)
	if err := ring.Remove(held.KeyID()); err != nil {
		t.Fatal(err)
	}
	if token, err := held.Sign([]byte("{}")); !errors.Is(err, keys.ErrNoKey) || token != "" || !strings.Contains(err.Error(), held.KeyID()) {
		t.Errorf("it signed, error %v; want ErrNoKey with the key's ID", err)
	}
}

// A process that slept through its rotation signs with the next key.
func TestSignerWithoutRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{})
		first, next := only(t, ring, keys.Active).ID, only(t, ring, keys.Next).ID
		sleep(keys.DefaultPeriod - 1)
		if got := signer(t, ring).KeyID(); got != first {
			t.Errorf("it signs with %s before the period is over", got)
		}
		sleep(1)
		if got := signer(t, ring).KeyID(); got != next {
			t.Errorf("it signs with %s; want the next key %s", got, next)
		}
		// There is nobody to make another key, so this one stays.
		sleep(10 * keys.DefaultPeriod)
		if got := signer(t, ring).KeyID(); got != next {
			t.Errorf("it signs with %s; want to stay with %s", got, next)
		}
		if !verifies(t, parse(t, ring.Set()), sign(t, signer(t, ring))) {
			t.Error("an overdue key is not published")
		}
	})
}
