package verify

import "testing"

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
