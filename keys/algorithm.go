package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	jose "github.com/go-jose/go-jose/v4"
)

// Algorithm is what a ring signs with. The zero value stands for ES256.
type Algorithm string

// The algorithms. A ring has one, and so has every key of it (RFC 8725 §3.1).
const (
	ES256   Algorithm = "ES256"   // ECDSA on P-256 with SHA-256 (RFC 7518 §3.4)
	Ed25519 Algorithm = "Ed25519" // EdDSA on Curve25519 (RFC 8032); see Header for its name on the wire
	RS256   Algorithm = "RS256"   // RSASSA-PKCS1-v1_5 with SHA-256 and RSABits (RFC 7518 §3.3)
)

// RSABits is the length of the RSA keys that a ring makes. Making one takes tenths of a second.
const RSABits = 2048

// ParseAlgorithm returns the algorithm of that exact name.
func ParseAlgorithm(name string) (Algorithm, error) {
	switch a := Algorithm(name); a {
	case ES256, Ed25519, RS256:
		return a, nil
	}
	return "", fmt.Errorf("keys: %q is not an algorithm; choose %s, %s or %s", name, ES256, Ed25519, RS256)
}

// Header is the algorithm's name in the alg member of headers and keys. It differs from the
// algorithm's own for Ed25519 only: RFC 9864 replaces the name EdDSA of RFC 8037 by Ed25519, but
// go-jose and golang-jwt know the older name alone, and every library that has the curve knows that.
func (a Algorithm) Header() string {
	if a == Ed25519 {
		return string(jose.EdDSA)
	}
	return string(a)
}

// generate makes a private key.
func (a Algorithm) generate() (crypto.Signer, error) {
	switch a {
	case ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case RS256:
		return rsa.GenerateKey(rand.Reader, RSABits)
	}
	return nil, fmt.Errorf("keys: %q is not an algorithm", string(a))
}
