package keys

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"time"
)

// Set is what verifiers may know: a JWK Set and how to serve it.
type Set struct {
	JSON   []byte        // the document (RFC 7517 §5), to be served as application/jwk-set+json
	ETag   string        // a strong one with its quotes (RFC 9110 §8.8.3); it changes with the document
	MaxAge time.Duration // how long it may be cached
}

// Set returns what is published now: the active key first, then the next, then the retiring ones.
// The caller owns the result. With shared keys that cannot be read it is what was published last.
func (r *Ring) Set() Set {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	set := r.set
	set.JSON = bytes.Clone(set.JSON)
	return set
}

// newSet writes a set. The keys are in their encoded form already.
func newSet(published []*key, maxAge time.Duration) Set {
	var encoded [][]byte
	for _, k := range published {
		encoded = append(encoded, k.public)
	}
	document := append([]byte(`{"keys":[`), bytes.Join(encoded, []byte(","))...)
	document = append(document, "]}"...)
	sum := sha256.Sum256(document)
	return Set{
		JSON:   document,
		ETag:   `"` + base64.RawURLEncoding.EncodeToString(sum[:]) + `"`,
		MaxAge: maxAge,
	}
}
