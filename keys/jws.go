package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// jws makes JSON Web Signatures with one private key. All have the same header, so it is encoded
// once: go-jose would do it for every one, which takes a third of the time of an ECDSA signature. Tests
// have go-jose read what this writes.
type jws struct {
	header    string // the protected header and the dot after it
	algorithm Algorithm
	private   crypto.Signer
}

// p256Bytes is the length of one of the two numbers of an ES256 signature (RFC 7518 §3.4).
const p256Bytes = 32

func newJWS(algorithm Algorithm, kid, typ string, private crypto.Signer) (*jws, error) {
	header, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		Type      string `json:"typ"`
	}{algorithm.Header(), kid, typ})
	if err != nil {
		return nil, fmt.Errorf("keys: encode a header: %w", err)
	}
	return &jws{base64.RawURLEncoding.EncodeToString(header) + ".", algorithm, private}, nil
}

// sign returns the payload as a JWS in its compact form (RFC 7515 §5.1 and §7.1).
func (j *jws) sign(payload []byte) (string, error) {
	encoding := base64.RawURLEncoding
	out := make([]byte, 0, len(j.header)+encoding.EncodedLen(len(payload))+1+encoding.EncodedLen(RSABits/8))
	out = encoding.AppendEncode(append(out, j.header...), payload)
	signature, err := j.signature(out)
	if err != nil {
		return "", err
	}
	return string(encoding.AppendEncode(append(out, '.'), signature)), nil
}

func (j *jws) signature(input []byte) ([]byte, error) {
	switch j.algorithm {
	case Ed25519:
		return j.private.Sign(nil, input, crypto.Hash(0))
	case RS256:
		digest := sha256.Sum256(input)
		return j.private.Sign(nil, digest[:], crypto.SHA256)
	case ES256:
		private, ok := j.private.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%T cannot sign %s", j.private, ES256)
		}
		digest := sha256.Sum256(input)
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		if err != nil {
			return nil, err
		}
		signature := make([]byte, 2*p256Bytes)
		r.FillBytes(signature[:p256Bytes])
		s.FillBytes(signature[p256Bytes:])
		return signature, nil
	}
	return nil, fmt.Errorf("%q is not an algorithm", string(j.algorithm))
}
