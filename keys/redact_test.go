package keys_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/errandhq/errand/keys"
)

// No way of printing a ring, a signer or what operators see shows a private key in any spelling.
func TestPrivateKeysAreNeverShown(t *testing.T) {
	var secrets [][]byte
	ring, err := keys.NewWith(keys.Config{Type: typ, Life: life}, func() (crypto.Signer, error) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		secret, err := private.Bytes()
		secrets = append(secrets, secret)
		return private, err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := signer(t, ring)
	var out bytes.Buffer
	for _, v := range []any{ring, s, ring.Keys(), struct{ Signer *keys.Signer }{s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("key", "value", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("key", "value", v)
		if err := json.NewEncoder(&out).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	out.Write(ring.Set().JSON)
	if len(secrets) != 2 {
		t.Fatalf("%d keys were made; want 2", len(secrets))
	}
	for _, secret := range secrets {
		for _, spelling := range []string{
			string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
			base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret),
			new(big.Int).SetBytes(secret).String(), strings.Trim(fmt.Sprint(secret), "[]"), strings.Trim(fmt.Sprintf("%#v", secret), "[]byte{}"),
		} {
			if strings.Contains(out.String(), spelling) {
				t.Errorf("a private key is shown as %q", spelling)
			}
		}
	}
	for _, v := range []any{ring, s} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if got := fmt.Sprintf(verb, v); !strings.Contains(got, "redacted") {
				t.Errorf("%s prints %q", verb, got)
			}
		}
	}
}
