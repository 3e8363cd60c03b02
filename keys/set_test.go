package keys_test

import (
	"bytes"
	"crypto"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/errandhq/errand/keys"
)

// TestSetMembers fails when a member that is not meant to be public appears, whatever its name is.
func TestSetMembers(t *testing.T) {
	for algorithm, want := range map[keys.Algorithm][]string{
		keys.ES256:   {"alg", "crv", "kid", "kty", "use", "x", "y"},
		keys.Ed25519: {"alg", "crv", "kid", "kty", "use", "x"},
		keys.RS256:   {"alg", "e", "kid", "kty", "n", "use"},
	} {
		t.Run(string(algorithm), func(t *testing.T) {
			ring := newRing(t, keys.Config{Algorithm: algorithm})
			var document map[string][]map[string]string
			if err := json.Unmarshal(ring.Set().JSON, &document); err != nil {
				t.Fatal(err)
			}
			if len(document) != 1 || len(document["keys"]) != 2 {
				t.Fatalf("the set has members %v with %d keys; want keys alone, with 2", slices.Collect(maps.Keys(document)), len(document["keys"]))
			}
			for _, k := range document["keys"] {
				if diff := cmp.Diff(want, slices.Sorted(maps.Keys(k))); diff != "" {
					t.Errorf("members (-want +got):\n%s", diff)
				}
				if k["use"] != "sig" || k["alg"] != algorithm.Header() || len(k["kid"]) != 43 {
					t.Errorf("use %q, alg %q, kid %q", k["use"], k["alg"], k["kid"])
				}
			}
		})
	}
}

// go-jose's own parser finds the keys, whole and public, under the thumbprints that it computes.
func TestSetParses(t *testing.T) {
	for _, algorithm := range []keys.Algorithm{keys.ES256, keys.Ed25519, keys.RS256} {
		t.Run(string(algorithm), func(t *testing.T) {
			ring := newRing(t, keys.Config{Algorithm: algorithm})
			set := parse(t, ring.Set())
			if got, want := published(t, ring), []string{only(t, ring, keys.Active).ID, only(t, ring, keys.Next).ID}; !slices.Equal(got, want) {
				t.Errorf("kids %v; want %v", got, want)
			}
			for _, k := range set.Keys {
				if !k.Valid() || !k.IsPublic() {
					t.Errorf("key %s is valid: %v, public: %v", k.KeyID, k.Valid(), k.IsPublic())
				}
				if id, err := keys.Thumbprint(k.Key); err != nil || id != k.KeyID {
					t.Errorf("kid %q; the thumbprint is %q, %v", k.KeyID, id, err)
				}
			}
		})
	}
}

// The vectors of RFC 7638 §3.1 and RFC 8037 appendix A.3.
func TestThumbprint(t *testing.T) {
	for name, c := range map[string]struct{ jwk, want string }{
		"RFC 7638": {
			`{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`,
			"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
		},
		"RFC 8037": {
			`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
			"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var k jose.JSONWebKey
			if err := json.Unmarshal([]byte(c.jwk), &k); err != nil {
				t.Fatal(err)
			}
			if got, err := keys.Thumbprint(k.Key.(crypto.PublicKey)); err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// A cache may rely on the ETag: it is the same exactly while the document is.
func TestSetETag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{})
		first := ring.Set()
		if !strings.HasPrefix(first.ETag, `"`) || !strings.HasSuffix(first.ETag, `"`) || len(first.ETag) != 45 {
			t.Errorf("ETag %s is not a quoted hash", first.ETag)
		}
		sleep(time.Hour)
		if diff := cmp.Diff(first, ring.Set()); diff != "" {
			t.Errorf("it changed with time alone:\n%s", diff)
		}
		if err := ring.Rotate(); err != nil {
			t.Fatal(err)
		}
		second := ring.Set()
		if second.ETag == first.ETag || bytes.Equal(second.JSON, first.JSON) {
			t.Error("a rotation did not change it")
		}
	})
}

func TestSetIsTheCallersOwn(t *testing.T) {
	ring := newRing(t, keys.Config{})
	clear(ring.Set().JSON)
	parse(t, ring.Set())
}
