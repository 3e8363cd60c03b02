package keys_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/errandhq/errand/keys"
)

// BenchmarkSign stands beside the raw signature that it contains; the difference is what a ring costs.
func BenchmarkSign(b *testing.B) {
	payload := []byte(`{"claims":"` + strings.Repeat("x", 600) + `"}`)
	for algorithm, raw := range map[keys.Algorithm]func() (crypto.Signer, error){
		keys.ES256: func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		keys.Ed25519: func() (crypto.Signer, error) {
			_, private, err := ed25519.GenerateKey(rand.Reader)
			return private, err
		},
		keys.RS256: func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, keys.RSABits) },
	} {
		b.Run(string(algorithm)+"/ring", func(b *testing.B) {
			ring := newRing(b, keys.Config{Algorithm: algorithm})
			b.ReportAllocs()
			for b.Loop() {
				s, err := ring.Signer()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Sign(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(algorithm)+"/raw", func(b *testing.B) {
			private, err := raw()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				message, hash := payload, crypto.Hash(0)
				if algorithm != keys.Ed25519 {
					sum := sha256.Sum256(payload)
					message, hash = sum[:], crypto.SHA256
				}
				if _, err := private.Sign(rand.Reader, message, hash); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
