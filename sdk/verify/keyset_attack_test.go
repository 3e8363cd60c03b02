package verify_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// keySet is one answer of the issuer to a request for its keys. A verifier does not start with a bad
// one; one that runs keeps what it has, and says what was wrong.
type keySet struct {
	name string // begins with its number in the catalogue
	body string
	says string // a part of the error; empty when the set is good
}

// with is a JWK as text, with members changed; nil removes one.
func with(t *testing.T, jwk map[string]any, changes map[string]any) string {
	t.Helper()
	out := map[string]any{}
	for name, value := range jwk {
		out[name] = value
	}
	for name, value := range changes {
		if out[name] = value; value == nil {
			delete(out, name)
		}
	}
	return string(marshal(t, out))
}

func keySets(t *testing.T, b *broker) []keySet {
	jwk := b.key.jwk(t)
	good := with(t, jwk, nil)
	private := b64(must(b.key.private.(*ecdsa.PrivateKey).Bytes())(t))
	set := func(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }
	more := func(changes map[string]any) string {
		all := map[string]any{"kid": "other"}
		for name, value := range changes {
			all[name] = value
		}
		return set(good, with(t, jwk, all))
	}
	many := make([]string, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf(`{"kty":"OKP","kid":"k%d","use":"enc"}`, i)
	}
	p256, p521 := elliptic.P256().Params(), elliptic.P521().Params()
	wide := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)
	point := must(wide.PublicKey.Bytes())(t)[1:]
	out := []keySet{
		{"242 an empty set", set(), "no key that can sign"},
		{"243 nothing", "", "not a JWK Set"}, {"243 null", "null", "not a JWK Set"}, {"243 keys null", `{"keys":null}`, "not a JWK Set"},
		{"243 keys twice", `{"keys":[],"keys":[` + good + `]}`, "not a JWK Set"}, {"243 a key twice its kid", set(strings.Replace(good, "{", `{"kid":"x",`, 1)), "not a JWK"},
		{"243 cut", set(good)[:40], "not a JWK Set"}, {"243 trailing garbage", set(good) + "x", "not a JWK Set"}, {"243 a key that is text", set(good, `"x"`), "not a JWK"},
		{"243 deep", strings.Repeat(`{"keys":[`, 100_000), "not a JWK Set"}, {"243 one JWK", good, "not a JWK Set"},
		{"244 HTML", "<!doctype html><title>Sign in</title>", "not a JWK Set"},
		{"245 10 MiB of spaces", set(good) + strings.Repeat(" ", 10<<20), "more than 1048576 bytes"},
		{"245 10 MiB in a member", `{"x":"` + strings.Repeat("x", 10<<20) + `","keys":[` + good + `]}`, "more than 1048576 bytes"},
		{"246 10 000 keys", set(append(many, good)...), "10001 keys"},
		{"247 a kid twice", set(good, good), "kid of another"},
		{"247 a kid twice, for another use", set(good, with(t, jwk, map[string]any{"use": "enc"})), "kid of another"},
		{"248 a symmetric key", set(good, `{"kty":"oct","kid":"s","alg":"HS256","k":"AAAA"}`), "secret"},
		{"248 a symmetric key that names no key", set(good, `{"kty":"oct"}`), "secret"},
		{"249 the private key", set(with(t, jwk, map[string]any{"d": private})), "stolen"},
		{"249 a private member that is null", set(with(t, jwk, map[string]any{"d": json.RawMessage("null")})), "stolen"},
		{"249 the private part of an RSA key", more(map[string]any{"kty": "RSA", "p": "AA", "q": "AA"}), "stolen"},
		{"249 a private key for another use", more(map[string]any{"use": "enc", "d": private}), "stolen"},
		{"250 use enc", set(with(t, jwk, map[string]any{"use": "enc"})), "no key that can sign"},
		{"250 use in capitals", set(with(t, jwk, map[string]any{"use": "SIG"})), "no key that can sign"},
		{"250 key_ops encrypt", set(with(t, jwk, map[string]any{"key_ops": []string{"encrypt"}})), "no key that can sign"},
		{"250 key_ops empty", set(with(t, jwk, map[string]any{"key_ops": []string{}})), "no key that can sign"},
		{"250 key_ops text", set(with(t, jwk, map[string]any{"key_ops": "verify"})), "not a JWK"},
		{"250 key_ops verify, and no use", set(with(t, jwk, map[string]any{"use": nil, "key_ops": []string{"verify"}})), ""},
		{"251 alg missing", set(with(t, jwk, map[string]any{"alg": nil})), "no key that can sign"},
		{"251 alg none", set(with(t, jwk, map[string]any{"alg": "none"})), "no key that can sign"},
		{"251 alg HS256", set(with(t, jwk, map[string]any{"alg": "HS256"})), "no key that can sign"},
		{"251 alg RS256 of an EC key", set(with(t, jwk, map[string]any{"alg": "RS256"})), "does not fit RS256"},
		{"251 alg EdDSA of an EC key", set(with(t, jwk, map[string]any{"alg": "EdDSA"})), "does not fit EdDSA"},
		{"251 kid missing", set(with(t, jwk, map[string]any{"kid": nil})), "no key that can sign"},
		{"251 kid that is a path", set(with(t, jwk, map[string]any{"kid": "../x"})), "no key that can sign"},
		{"252 y flipped", more(map[string]any{"y": b64(flip(must(base64.RawURLEncoding.DecodeString(jwk["y"].(string)))(t)))}), "key 1"},
		{"252 the point at infinity", more(map[string]any{"x": b64(make([]byte, 32)), "y": b64(make([]byte, 32))}), "key 1"},
		{"252 x is p", more(map[string]any{"x": b64(p256.P.Bytes())}), "key 1"},
		{"252 y missing", more(map[string]any{"y": nil}), "key 1"},
		{"253 P-521", more(map[string]any{"crv": "P-521", "x": b64(point[:66]), "y": b64(point[66:])}), "does not fit ES256"},
		{"253 P-521, long coordinates", more(map[string]any{"crv": "P-521", "x": b64(append([]byte{0}, point[:66]...)), "y": b64(point[66:])}), "key 1"},
		{"253 P-521, its prime", more(map[string]any{"crv": "P-521", "x": b64(p521.P.Bytes()), "y": b64(point[66:])}), "key 1"},
		{"253 a short coordinate", more(map[string]any{"x": "AA"}), "key 1"},
		{"253 a long coordinate", more(map[string]any{"x": b64(make([]byte, 33))}), "key 1"},
		{"253 a curve of another type", more(map[string]any{"crv": "Ed25519"}), "key 1"},
		{"253 Ed25519 of 31 bytes", set(good, `{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"e","x":"`+b64(make([]byte, 31))+`"}`), "key 1"},
	}
	for name, x := range smallOrder() {
		out = append(out, keySet{"253 Ed25519 of small order, " + name, set(good, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"e","x":%q}`, b64(x))), "key 1"})
	}
	n := newSigningKey(t, "RS256").private.(*rsa.PrivateKey).N
	bits := func(size uint) *big.Int { // odd, of that length
		return new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), size), big.NewInt(1))
	}
	for name, key := range map[string]struct {
		n *big.Int
		e string
	}{
		"e 1": {n, "AQ"}, "e 2": {n, "Ag"}, "e 0": {n, "AA"}, "e of 64 bits": {n, "__________8"}, "e of 4096 bits": {n, b64(bits(4096).Bytes())},
		"n even": {new(big.Int).Sub(n, big.NewInt(1)), "AQAB"}, "n 0": {new(big.Int), "AQAB"}, "512 bits": {bits(512), "AQAB"}, "1024 bits": {bits(1024), "AQAB"}, "2047 bits": {bits(2047), "AQAB"},
		"8193 bits": {bits(8193), "AQAB"}, "16384 bits": {bits(16384), "AQAB"}, "a million bits": {bits(1_000_000), "AQAB"},
	} {
		out = append(out, keySet{"254 RSA, " + name, set(good, fmt.Sprintf(`{"kty":"RSA","alg":"RS256","kid":"r","n":%q,"e":%q}`, b64(key.n.Bytes()), key.e)), "key 1"})
	}
	return append(out, keySet{"254 RSA of 2048 bits with e 3", set(good, fmt.Sprintf(`{"kty":"RSA","alg":"RS256","kid":"r","n":%q,"e":"Aw"}`, b64(n.Bytes()))), ""})
}

func flip(b []byte) []byte {
	b[len(b)-1] ^= 1
	return b
}

// smallOrder are points of Ed25519 for which everybody can sign (RFC 8032 §5.1, and the literature).
func smallOrder() map[string][]byte {
	point := func(first, last byte, fill byte) []byte {
		b := bytes.Repeat([]byte{fill}, ed25519.PublicKeySize)
		b[0], b[31] = first, last
		return b
	}
	return map[string][]byte{
		"0": point(0, 0, 0), "1": point(1, 0, 0), "-1": point(0xec, 0x7f, 0xff), "0 with the sign": point(0, 0x80, 0), "p, not canonical": point(0xed, 0x7f, 0xff), "p and 1, not canonical": point(0xee, 0x7f, 0xff),
		"order 8": {0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05},
	}
}

// TestAttackKeySets is 242 to 254: what is wrong with any key is wrong with the set.
func TestAttackKeySets(t *testing.T) {
	for _, c := range keySets(t, newBroker(t, 1)) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			b.handle(wire.PathJWKS, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(c.body)) })
			err := b.start(wire.PathJWKS)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("the error must say %q: %.300v", c.says, err)
			}
		})
	}
}

// TestAttackKeySetsOfARunningVerifier: none of them takes the keys away that it has, or adds one. An empty
// set is a set, though, and takes all away.
func TestAttackKeySetsOfARunningVerifier(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	sets := keySets(t, b)
	var body atomic.Value
	var asked atomic.Int64
	body.Store(string(marshal(t, map[string]any{"keys": []any{b.key.jwk(t)}})))
	b.handle(wire.PathJWKS, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write([]byte(body.Load().(string)))
	})
	v := b.verifier(nil)
	token := b.token(nil)
	fetch := func(set string) {
		t.Helper()
		before := asked.Load()
		body.Store(set)
		b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
		eventually(t, "the set is asked for", func() bool { return asked.Load() > before })
	}
	for _, c := range sets {
		if c.says == "" || strings.HasPrefix(c.name, "249 ") || strings.Contains(c.says, "no key that can sign") {
			continue
		}
		fetch(c.body)
		eventually(t, c.name, func() bool { return strings.Contains(v.Status().LastError, c.says) })
		if err := refused(t, v, b, token); err != nil {
			t.Errorf("after %s: %v", c.name, err)
		}
		if got := v.Status().Keys; len(got) != 1 {
			t.Errorf("after %s: keys %v", c.name, got)
		}
	}
	fetch(`{"keys":[]}`)
	goesTo(t, v, b, token, verify.ErrSignature)
}

// TestAttackKeySetNumbers: no number between 242 and 260 was forgotten.
func TestAttackKeySetNumbers(t *testing.T) {
	there := map[string]bool{
		"255": true,                                                     // TestCVE_2026_22772
		"256": true, "257": true, "258": true, "259": true, "260": true, // below
	}
	for _, c := range keySets(t, newBroker(t, 1)) {
		number, _, _ := strings.Cut(c.name, " ")
		there[number] = true
	}
	for number := 242; number <= 260; number++ {
		if !there[strconv.Itoa(number)] {
			t.Errorf("number %d is missing", number)
		}
	}
}

// logs collects what a verifier logs.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) has(text string) bool { return l.count(text) > 0 }

func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// TestAttackPublishedPrivateKey is 249 for a verifier that runs: a key whose secret the issuer itself
// publishes belongs to everybody. Its tokens are refused at once, those of the other keys are not,
// the log says so in an error, and no fetch follows the other without a pause.
func TestAttackPublishedPrivateKey(t *testing.T) {
	b := newBroker(t, 1)
	other := newSigningKey(t, "ES256")
	b.keys = append(b.keys, other.jwk(t))
	log := &logs{}
	v := b.verifier(func(c *verify.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	token, good := b.token(nil), other.sign(t, wire.TokenType, marshal(t, b.claims(nil)))
	for _, each := range []string{token, good} {
		if err := refused(t, v, b, each); err != nil {
			t.Fatal(err)
		}
	}
	g := must(v.Verify(t.Context(), token, b.peer()))(t)
	running, done, err := v.Watch(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	b.change(func() {
		b.keys[0]["d"] = b64(must(b.key.private.(*ecdsa.PrivateKey).Bytes())(t))
	})
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
	goesTo(t, v, b, token, verify.ErrRevoked)
	<-running.Done()
	if err := refused(t, v, b, good); err != nil {
		t.Errorf("a token of the other key: %v", err)
	}
	eventually(t, "the log says it", func() bool { return log.has("level=ERROR") && log.has(b.key.kid) })
	if log.has(b.keys[0]["d"].(string)) {
		t.Error("the private key is in the log")
	}
	if n := b.fetches.Load(); n > 5 {
		t.Errorf("%d fetches", n)
	}
	// The issuer hides it again; it stays what it is.
	b.change(func() { delete(b.keys[0], "d") })
	fetched := b.fetches.Load()
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"})
	eventually(t, "the set is fetched again", func() bool { return b.fetches.Load() > fetched && len(v.Status().Keys) == 2 })
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("after the secret was taken away: %v", err)
	}
}

// TestAttackAllPrivateKeysPublished: who publishes one secret by mistake publishes the whole set of them.
// None of the keys is believed any more, whatever stands before it.
func TestAttackAllPrivateKeysPublished(t *testing.T) {
	b := newBroker(t, 1)
	other := newSigningKey(t, "ES256")
	b.keys = append(b.keys, other.jwk(t))
	v := b.verifier(nil)
	token, second := b.token(nil), other.sign(t, wire.TokenType, marshal(t, b.claims(nil)))
	for _, each := range []string{token, second} {
		if err := refused(t, v, b, each); err != nil {
			t.Fatal(err)
		}
	}
	b.change(func() {
		b.keys[0]["d"] = b64(must(b.key.private.(*ecdsa.PrivateKey).Bytes())(t))
		b.keys[1]["d"] = b64(must(other.private.(*ecdsa.PrivateKey).Bytes())(t))
		b.keys = append([]map[string]any{{"kty": "EC", "kid": "broken", "alg": "ES256"}, {"kty": "oct", "kid": "unknown", "k": "AAAA"}}, b.keys...)
	})
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
	for _, each := range []string{token, second} {
		goesTo(t, v, b, each, verify.ErrRevoked)
	}
}

// TestAttackSlowKeySet is 256: a byte a moment, for ever. The fetch is given up.
func TestAttackSlowKeySet(t *testing.T) {
	t.Parallel()
	for _, path := range []string{wire.PathMetadata, wire.PathJWKS} {
		t.Run(path[strings.LastIndex(path, "/"):], func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			b.handle(path, func(w http.ResponseWriter, r *http.Request) {
				for {
					if _, err := w.Write([]byte(" ")); err != nil {
						return
					}
					_ = http.NewResponseController(w).Flush()
					select {
					case <-r.Context().Done():
						panic(http.ErrAbortHandler) // or it would end well
					case <-time.After(100 * time.Millisecond):
					}
				}
			})
			began := time.Now()
			err := b.start(path)
			if err == nil || !strings.Contains(err.Error(), "deadline exceeded") || time.Since(began) > 15*time.Second {
				t.Errorf("after %s: %v", time.Since(began), err)
			}
		})
	}
}

// TestAttackKeySetStatus is 257 and 258: an answer that is none leaves the keys that there are, for
// as long as they may be used; TestOldKeysAreNotUsed is the end of that.
func TestAttackKeySetStatus(t *testing.T) {
	for _, status := range []int{304, 401, 404, 429, 500, 503} {
		t.Run(fmt.Sprintf("257 and 258 status %d", status), func(t *testing.T) {
			t.Parallel()
			answer := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
			b := newBroker(t, 1)
			b.handle(wire.PathJWKS, answer)
			if err := b.start(wire.PathJWKS); err == nil || !strings.Contains(err.Error(), strconv.Itoa(status)) {
				t.Errorf("at the start: %v", err)
			}
			b = newBroker(t, 1)
			v := b.verifier(nil)
			b.handle(wire.PathJWKS, answer)
			b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
			eventually(t, "the error is seen", func() bool { return strings.Contains(v.Status().LastError, strconv.Itoa(status)) })
			if err := refused(t, v, b, b.token(nil)); err != nil {
				t.Errorf("with the keys of before: %v", err)
			}
		})
	}
}

// TestAttackKeySetRollback is 259: an older set comes back. The issuer says by it which keys count, so
// it does; but what was denied over the feed stays denied.
func TestAttackKeySetRollback(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token, old := b.token(nil), b.keys
	next := newSigningKey(t, "ES256")
	b.change(func() { b.keys = []map[string]any{next.jwk(t)} })
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: b.key.kid})
	goesTo(t, v, b, token, verify.ErrSignature)
	b.change(func() { b.keys = old })
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
	goesTo(t, v, b, token, verify.ErrRevoked)
}

// TestAttackKeySetServer is 260: a listener that is not the issuer's.
func TestAttackKeySetServer(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*testing.T, *broker){
		"another CA":       func(t *testing.T, b *broker) { b.publicCert = newAuthority(t).svid(t, brokerID, nil) },
		"another workload": func(t *testing.T, b *broker) { b.publicCert = b.ca.svid(t, agentID, nil) },
		"expired": func(t *testing.T, b *broker) {
			b.publicCert = b.ca.svid(t, brokerID, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		},
	} {
		t.Run("260 "+name, func(t *testing.T) {
			b := newBroker(t, 1)
			b.change(func() { edit(t, b) })
			b.public.CloseClientConnections()
			_, err := verify.New(within(t, 500*time.Millisecond), b.config())
			if err == nil || b.fetches.Load() != 0 {
				t.Errorf("%d fetches, %v", b.fetches.Load(), err)
			}
		})
	}
}
