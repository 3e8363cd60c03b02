package broker

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
)

// seal writes what only the replicas of this deployment can have written: the payload and an HMAC-SHA-256, both in
// base64url with a dot between them. what says what it is, and keeps one kind from being taken for another. Nothing of it is secret.
func (e endKeys) seal(what string, payload []byte) string {
	return base64.RawURLEncoding.EncodeToString(payload) + "." + base64.RawURLEncoding.EncodeToString(e.mac(what, payload))
}

// unseal returns the payload of exactly what seal has written.
func (e endKeys) unseal(what, text string) (payload []byte, ok bool) {
	body, mac, dotted := strings.Cut(text, ".")
	payload, err := base64.RawURLEncoding.Strict().DecodeString(body)
	sum, err2 := base64.RawURLEncoding.Strict().DecodeString(mac)
	if !dotted || err != nil || err2 != nil || !hmac.Equal(sum, e.mac(what, payload)) {
		return nil, false
	}
	return payload, e.seal(what, payload) == text
}

func (e endKeys) mac(what string, payload []byte) []byte {
	mac := hmac.New(sha256.New, e.secret)
	mac.Write([]byte(what + "\n")) // no kind has a line break
	mac.Write(payload)
	return mac.Sum(nil)
}

// plainJSON is of values that cannot fail to be JSON.
func plainJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("broker: a %T of plain values must marshal: %v", v, err))
	}
	return text
}
