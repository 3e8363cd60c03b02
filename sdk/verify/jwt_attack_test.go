package verify_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// The attack tests go through a catalogue of bad inputs by their numbers: 184 to 241 are tokens, 242
// to 260 key sets, 261 to 280 what a feed can do. Of 210, 211, 224, 233 and 240 the cases show what
// stands in the place of a thing that this project does not have.

// attack is one token, and what must be said of it; nil means that it is good, and for a reason.
type attack struct {
	name  string // begins with its number
	token string
	want  error
}

// forger makes attacks with the keys of an issuer that signs with three algorithms.
type forger struct {
	t       *testing.T
	b       *broker
	ed, rsa *signingKey
	evil    *signingKey // that nobody published
	payload string      // of a good token
	out     []attack
}

func newForger(t *testing.T) *forger {
	t.Helper()
	f := &forger{t: t, b: newBroker(t, 1), ed: newSigningKey(t, "EdDSA"), rsa: newSigningKey(t, "RS256"), evil: newSigningKey(t, "ES256")}
	f.b.keys = append(f.b.keys, f.ed.jwk(t), f.rsa.jwk(t))
	f.payload = string(marshal(t, f.b.claims(nil)))
	return f
}

func (f *forger) add(want error, name, token string) {
	f.out = append(f.out, attack{name: name, token: token, want: want})
}

// header signs the good payload under another header.
func (f *forger) header(want error, name, header string) {
	f.add(want, name, f.b.key.forge(f.t, header, f.payload))
}

// with is the header of a good token, with more members or other ones.
func (f *forger) with(more string) string {
	return fmt.Sprintf(`{"typ":"at+jwt","alg":"ES256","kid":%q%s}`, f.b.key.kid, more)
}

func (f *forger) under(alg, kid string) string {
	return fmt.Sprintf(`{"typ":"at+jwt","alg":%s,"kid":%s}`, alg, kid)
}

// claim signs a payload with one claim changed.
func (f *forger) claim(want error, number int, name string, value any) {
	f.add(want, fmt.Sprintf("%d %s %v", number, name, value), f.b.token(func(c map[string]any) { c[name] = value }))
}

func (f *forger) without(number int, name string) {
	f.add(verify.ErrMalformed, fmt.Sprintf("%d %s missing", number, name), f.b.token(func(c map[string]any) { delete(c, name) }))
}

// corpus is everything.
func (f *forger) corpus() []attack {
	f.algorithms()
	f.signatures()
	f.headers()
	f.keyNames()
	f.otherTokens()
	f.shapes()
	f.times()
	f.names()
	f.rest()
	return f.out
}

func (f *forger) algorithms() {
	kid := strconv.Quote(f.b.key.kid)
	good := f.b.token(nil)
	signature := good[strings.LastIndexByte(good, '.'):]
	for _, alg := range []string{`"none"`, `"None"`, `"nOnE"`, `"NONE"`, `""`, `null`, `0`, `["ES256"]`} {
		header := b64([]byte(f.under(alg, kid))) + "." + b64([]byte(f.payload))
		f.add(verify.ErrMalformed, "184 alg "+alg+", no signature", header+".")
		f.add(verify.ErrMalformed, "184 alg "+alg+", a signature of zeros", header+"."+b64(make([]byte, 64)))
		f.add(verify.ErrMalformed, "184 alg "+alg+", the good signature", header+signature)
		f.header(verify.ErrMalformed, "184 alg "+alg+", a signature of its own", f.under(alg, kid))
	}
	f.header(verify.ErrMalformed, "184 alg missing", fmt.Sprintf(`{"typ":"at+jwt","kid":%s}`, kid))

	public := &f.b.key.private.(*ecdsa.PrivateKey).PublicKey
	der := must(x509.MarshalPKIXPublicKey(public))(f.t)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	secrets := map[string][]byte{
		"PEM": text, "PEM after a space": append([]byte(" "), text...), "PEM after a newline": append([]byte("\n"), text...),
		"PEM cut": text[:len(text)-1], "DER": der, "JWK": marshal(f.t, f.b.key.jwk(f.t)), "nothing": nil, "the point": must(public.Bytes())(f.t),
	}
	for what, secret := range secrets {
		for alg, h := range map[string]func() hash.Hash{"HS256": sha256.New, "HS384": sha512.New384, "HS512": sha512.New, "ES256": sha256.New} {
			number, want := 185, error(verify.ErrMalformed)
			switch alg {
			case "HS384", "HS512":
				number = 186
			case "ES256":
				want = verify.ErrSignature
			}
			input := b64([]byte(f.under(strconv.Quote(alg), kid))) + "." + b64([]byte(f.payload))
			mac := hmac.New(h, secret)
			mac.Write([]byte(input))
			f.add(want, fmt.Sprintf("%d %s with %s", number, alg, what), input+"."+b64(mac.Sum(nil)))
		}
	}
	f.header(verify.ErrSignature, "187 RS256 with an EC key", f.under(`"RS256"`, kid))
	f.header(verify.ErrSignature, "187 EdDSA with an EC key", f.under(`"EdDSA"`, kid))
	f.add(verify.ErrSignature, "187 ES256 with an RSA key", f.b.key.forge(f.t, f.under(`"ES256"`, strconv.Quote(f.rsa.kid)), f.payload))
	f.header(verify.ErrMalformed, "188 ES384 with a key on P-256", f.under(`"ES384"`, kid))
	for _, alg := range []string{` ES256`, `ES256 `, `es256`, `ES256K`, `PS256`} {
		f.header(verify.ErrMalformed, "188 alg "+alg, f.under(strconv.Quote(alg), kid))
	}
}

func (f *forger) signatures() {
	token := f.b.token(nil)
	dot := strings.LastIndexByte(token, '.')
	input, signature := token[:dot+1], must(base64.RawURLEncoding.DecodeString(token[dot+1:]))(f.t)
	n := elliptic.P256().Params().N
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	zero, one := big.NewInt(0), big.NewInt(1)
	for name, bad := range map[string][]byte{
		"189 r and s are 0 (CVE-2022-21449)": make([]byte, 64),
		"190 r is 0":                         rawSignature(zero, s),
		"190 s is 0":                         rawSignature(r, zero),
		"190 r is n":                         rawSignature(n, s),
		"190 s is n":                         rawSignature(r, n),
		"190 r and s are n":                  rawSignature(n, n),
		"190 r is n and 1":                   rawSignature(new(big.Int).Add(n, one), s),
		"190 r and s are 1":                  rawSignature(one, one),
		"191 DER":                            must(asn1.Marshal(struct{ R, S *big.Int }{r, s}))(f.t),
		"192 63 bytes":                       signature[:63],
		"192 65 bytes":                       append(slices.Clone(signature), 0),
		"192 a zero in front":                append([]byte{0}, signature...),
		"192 32 bytes":                       signature[:32],
		"192 twice":                          append(slices.Clone(signature), signature...),
	} {
		f.add(verify.ErrSignature, name, input+b64(bad))
	}
	f.add(verify.ErrMalformed, "192 0 bytes", input)
	// ECDSA has two signatures of each content, and anybody can make the second of the first. It is
	// the same grant, by the same jti, and denials and usage go by that; see TestTwinSignature.
	f.add(nil, "193 the twin signature, with n less s", input+b64(rawSignature(r, new(big.Int).Sub(n, s))))

	ed := f.ed.sign(f.t, wire.TokenType, []byte(f.payload))
	dot = strings.LastIndexByte(ed, '.')
	input, signature = ed[:dot+1], must(base64.RawURLEncoding.DecodeString(ed[dot+1:]))(f.t)
	f.add(nil, "194 EdDSA as it should be", ed)
	for name, bad := range map[string][]byte{
		"194 EdDSA with S and the group's order (not canonical)": notCanonical(signature),
		"194 EdDSA with R of small order and S of 0":             append([]byte{1}, make([]byte, 63)...),
		"194 EdDSA of zeros":                                     make([]byte, ed25519.SignatureSize),
		"194 EdDSA of 63 bytes":                                  signature[:63],
		"194 EdDSA of 65 bytes":                                  append(slices.Clone(signature), 0),
	} {
		f.add(verify.ErrSignature, name, input+b64(bad))
	}
	header, rest, _ := strings.Cut(f.b.token(nil), ".")
	reordered := fmt.Sprintf(`{"kid":%q,"alg":"ES256","typ":"at+jwt"}`, f.b.key.kid)
	if b64([]byte(reordered)) == header {
		f.t.Fatal("it is the same header")
	}
	f.add(verify.ErrSignature, "234 the header written in another order", b64([]byte(reordered))+"."+rest)
	f.add(verify.ErrSignature, "234 the header written with spaces", b64([]byte(f.with(" ")))+"."+rest)
}

// notCanonical adds the order of Ed25519's group to S (RFC 8032 §5.1.7 forbids it).
func notCanonical(signature []byte) []byte {
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(signature[32:])
	slices.Reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	return append(slices.Clone(signature[:32]), sum...)
}

func (f *forger) headers() {
	jwk := string(marshal(f.t, f.evil.jwk(f.t)))
	own := string(marshal(f.t, f.b.key.jwk(f.t)))
	const url = `"https://evil.example.com/keys"`
	for name, more := range map[string]string{
		"195 jwk of the thief": `,"jwk":` + jwk, "195 jwk of the issuer": `,"jwk":` + own, "195 jwk null": `,"jwk":null`,
		"196 jku": `,"jku":` + url, "197 x5u": `,"x5u":` + url, "198 x5c": `,"x5c":["MIIB"]`, "198 x5c empty": `,"x5c":[]`,
		"199 crit of the unknown": `,"crit":["x"],"x":1`, "199 crit of the known": `,"crit":["exp"]`, "200 crit empty": `,"crit":[]`, "200 crit null": `,"crit":null`,
		"201 b64 false": `,"b64":false,"crit":["b64"]`, "201 b64 true": `,"b64":true`, "202 zip": `,"zip":"DEF"`,
		"212 cty of a nested JWT": `,"cty":"JWT"`,
		"217 alg twice, the same": `,"alg":"ES256"`, "217 alg twice": `,"alg":"none"`, "217 kid twice": `,"kid":"x"`, "217 typ twice, once escaped": `,"\u0074yp":"JWT"`,
	} {
		f.header(verify.ErrMalformed, name, f.with(more))
		f.add(verify.ErrMalformed, name+", signed by the thief", f.evil.forge(f.t, f.with(more), f.payload))
	}
	good := f.with("")
	for name, header := range map[string]string{
		"219 header array": `[` + good + `]`, "219 header null": `null`, "219 header text": `"x"`, "219 header number": `1`, "219 header twice": good + good,
		"219 header with garbage": good + `x`, "219 header cut": good[:len(good)-1], "219 header not UTF-8": f.with(",\"x\":\"\xff\""),
	} {
		f.header(verify.ErrMalformed, name, header)
	}
	for name, payload := range map[string]string{
		"219 payload array": `[` + f.payload + `]`, "219 payload null": `null`, "219 payload text": `"x"`, "219 payload twice": f.payload + f.payload,
		"219 payload not UTF-8": "{\"x\":\"\xff\"," + f.payload[1:],
		"219 payload cut":       f.payload[:len(f.payload)-1], "219 payload {}": `{}`,
		"218 exp twice": `{"exp":9999999999,` + f.payload[1:], "218 aud twice": `{"aud":"orders",` + f.payload[1:],
		"218 aud twice, once escaped":              `{"\u0061ud":"invoices",` + f.payload[1:],
		"218 jti twice":                            `{"jti":"x",` + f.payload[1:],
		"218 cnf twice":                            strings.Replace(f.payload, `"x5t#S256"`, `"x5t#S256":"","x5t#S256"`, 1),
		"218 a claim twice that means nothing":     `{"x":1,"x":2,` + f.payload[1:],
		"218 a claim twice, deep in another":       `{"x":{"y":1,"y":2},` + f.payload[1:],
		"218 aud and Aud, which is another member": strings.Replace(f.payload, `"aud"`, `"Aud"`, 1),
	} {
		want := error(verify.ErrMalformed)
		if strings.HasSuffix(name, "deep in another") {
			want = nil // what is in there, nobody reads
		}
		f.add(want, name, f.b.key.forge(f.t, good, payload))
	}
}

func (f *forger) keyNames() {
	f.header(verify.ErrMalformed, "203 kid missing", `{"typ":"at+jwt","alg":"ES256"}`)
	for _, kid := range []string{
		`""`, `7`, `[]`, `null`, `{}`, `"../../dev/null"`, `"x' OR 1=1--"`, `"|id"`, `"a\u0000"`, `"` + f.b.key.kid + `\n"`, `"` + f.b.key.kid + `%00"`,
		`"` + strings.Repeat("a", 65) + `"`, `"` + strings.Repeat("a", 1<<20) + `"`,
	} {
		f.header(verify.ErrMalformed, fmt.Sprintf("203 kid %.30s of %d bytes", kid, len(kid)), f.under(`"ES256"`, kid))
	}
	other := newSigningKey(f.t, "ES256")
	f.add(verify.ErrSignature, "204 kid of another issuer", other.sign(f.t, wire.TokenType, []byte(f.payload)))
	f.add(verify.ErrSignature, "204 our kid, another issuer's key", other.forge(f.t, f.with(""), f.payload))
}

func (f *forger) otherTokens() {
	sign := func(want error, name, typ string, edit func(map[string]any)) {
		header := fmt.Sprintf(`{"typ":%q,"alg":"ES256","kid":%q}`, typ, f.b.key.kid)
		f.add(want, name, f.b.key.forge(f.t, header, string(marshal(f.t, f.b.claims(edit)))))
	}
	for _, typ := range []string{``, `JWT`, `AT+JWT`, `At+jwt`, `at+jwt `, `at jwt`, `application/AT+JWT`, `application/application/at+jwt`, `JOSE`, `statuslist+jwt`, `token-introspection+jwt`, `txntoken+jwt`, `logout+jwt`, `dpop+jwt`} {
		sign(verify.ErrMalformed, "208 typ "+typ, typ, nil)
	}
	sign(nil, "208 typ application/at+jwt", "application/at+jwt", nil)
	f.header(verify.ErrMalformed, "208 typ missing", fmt.Sprintf(`{"alg":"ES256","kid":%q}`, f.b.key.kid))
	f.header(verify.ErrMalformed, "208 typ number", fmt.Sprintf(`{"typ":1,"alg":"ES256","kid":%q}`, f.b.key.kid))
	idToken := func(c map[string]any) {
		c["nonce"], c["auth_time"] = "n", 1
		delete(c, "client_id")
		delete(c, "jti")
	}
	sign(verify.ErrMalformed, "209 an ID token", "JWT", idToken)
	sign(verify.ErrMalformed, "209 what is in an ID token", wire.TokenType, idToken)
	svid := func(c map[string]any) {
		for name := range c {
			if !slices.Contains([]string{"sub", "aud", "exp", "iat"}, name) {
				delete(c, name)
			}
		}
		c["aud"] = []string{audience}
	}
	sign(verify.ErrMalformed, "210 a SPIFFE JWT-SVID", "JWT", svid)
	sign(verify.ErrMalformed, "210 what is in a JWT-SVID", wire.TokenType, svid)
	// The feed is no JWT: its reader knows the broker by TLS. This is what one would be (RFC 8417).
	sign(verify.ErrMalformed, "211 a security event", "secevent+jwt", func(c map[string]any) { c["events"] = map[string]any{} })
	sign(verify.ErrMalformed, "211 what is in a status list", wire.TokenType, func(c map[string]any) {
		clear(c)
		c["iss"], c["sub"], c["iat"], c["exp"] = f.b.public.URL, f.b.public.URL+"/status/1", time.Now().Unix(), time.Now().Unix()+60
		c["status_list"] = map[string]any{"bits": 1, "lst": "eNoDAAAAAAE"}
	})
	f.add(verify.ErrMalformed, "213 five parts (JWE)", b64([]byte(`{"alg":"dir","enc":"A256GCM","zip":"DEF"}`))+"..AA.AA.AA")
	f.add(verify.ErrMalformed, "213 five parts (PBES2)", b64([]byte(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AA"}`))+".AA.AA.AA.AA")
}

func (f *forger) shapes() {
	token := f.b.token(nil)
	parts := strings.Split(token, ".")
	p, m, s := parts[0], parts[1], parts[2]
	dirty := []byte(token) // the last letter of 64 bytes has four bits that say nothing
	dirty[len(dirty)-1] = alphabet[strings.IndexByte(alphabet, dirty[len(dirty)-1])^1]
	for name, bad := range map[string]string{
		"214 flattened JSON":                       fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, p, m, s),
		"214 general JSON":                         fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, m, p, s),
		"214 compact and JSON (CVE-2022-39227)":    fmt.Sprintf(`{" %s.%s.%s ":"","protected":%q,"payload":%q,"signature":%q}`, p, m, s, p, m, s),
		"215 two parts":                            p + "." + m,
		"215 one part":                             p,
		"215 four parts":                           token + ".",
		"215 a dot in front":                       "." + token,
		"215 10 000 dots":                          strings.Repeat(".", 10_000),
		"215 8 000 dots":                           strings.Repeat(".", 8_000),
		"215 dots alone":                           "..",
		"216 the standard alphabet":                p + "." + m + ".+/" + s[2:],
		"216 padding":                              token + "=",
		"216 padding of a part":                    p + "=." + m + "." + s,
		"216 a space in front":                     " " + token,
		"216 a space behind":                       token + " ",
		"216 a newline behind":                     token + "\n",
		"216 a newline within":                     p + "." + m[:4] + "\n" + m[4:] + "." + s,
		"216 bits that say nothing":                string(dirty),
		"216 a letter of base64 that is not there": p + "." + m + "." + s[:len(s)-1],
		"216 percent":                              strings.Replace(token, ".", "%2e", 1),
		"216 a dot of another script":              strings.Replace(token, ".", "．", 1),
		"216 NUL":                                  token + "\x00",
		"220 a payload of 1 MiB":                   p + "." + b64(make([]byte, 1<<20)) + "." + s,
		"220 8193 bytes":                           strings.Repeat("a", wire.MaxTokenBytes-len(token)+1) + token,
		"238 Bearer twice":                         "Bearer " + token,
		"238 a list":                               token + "," + token,
		"238 a tab in front":                       "\t" + token,
	} {
		f.add(verify.ErrMalformed, name, bad)
	}
	f.add(verify.ErrMissing, "215 nothing", "")
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

func (f *forger) times() {
	now := time.Now().Unix()
	span := func(want error, name string, iat, exp any) {
		f.add(want, name, f.b.token(func(c map[string]any) { c["iat"], c["exp"] = iat, exp }))
	}
	f.without(221, "exp")
	for _, exp := range []any{nil, "9999999999", true, []int64{now + 60}, -1, 0, json.RawMessage("1e30"), json.RawMessage("1e400"), json.RawMessage(fmt.Sprintf("%d.5", now+60)), json.RawMessage("9223372036854775808")} {
		f.claim(verify.ErrMalformed, 221, "exp", exp)
	}
	span(verify.ErrExpired, "221 exp past", now-60, now-30)
	span(verify.ErrExpired, "221 exp a second past the leeway", now-60, now-6)
	span(nil, "221 exp two seconds within the leeway", now-60, now-2)
	span(verify.ErrMalformed, "221 exp 2^63-1", now, int64(1<<63-1))
	for _, nbf := range []any{now + 30, int64(1<<63 - 1), int64(1 << 62), int64(1 << 40), "0", json.RawMessage("1e3")} {
		f.claim(verify.ErrMalformed, 222, "nbf", nbf)
	}
	f.claim(nil, 222, "nbf", now)
	f.without(223, "iat")
	span(verify.ErrMalformed, "223 iat past the leeway", now+30, now+60)
	span(nil, "223 iat within the leeway", now+2, now+60)
	span(verify.ErrMalformed, "223 iat and exp at the end of time", int64(1<<63-2), int64(1<<63-1))
	span(verify.ErrMalformed, "223 iat far, where seconds since year 1 overflow", int64(1<<63-1)-62135596800+10, int64(1<<63-1)-62135596800+70)
	for _, iat := range []any{0, -1, "1", nil} {
		f.claim(verify.ErrMalformed, 223, "iat", iat)
	}
	span(verify.ErrMalformed, "225 a life of 901 s", now, now+901)
	span(nil, "225 a life of 900 s", now, now+900)
	span(verify.ErrMalformed, "225 exp before iat", now, now-1)
	span(verify.ErrMalformed, "225 exp is iat", now, now)
}

func (f *forger) names() {
	issuer := f.b.public.URL
	f.without(226, "iss")
	for _, iss := range []any{"", nil, []string{issuer}, []string{issuer, "https://evil.example.com"}, 1} {
		f.claim(verify.ErrMalformed, 226, "iss", iss)
	}
	for _, iss := range []any{"https://other.example.com", issuer + "/", issuer + "x", issuer[:len(issuer)-1], strings.ToUpper(issuer), issuer + "\x00", " " + issuer} {
		f.claim(verify.ErrIssuer, 226, "iss", iss)
	}
	f.without(227, "aud")
	for _, aud := range []any{"", nil, []string{}, []string{audience}, []string{"invoices", audience}, [][]string{{audience}}, 5, map[string]any{audience: true}} {
		f.claim(verify.ErrMalformed, 227, "aud", aud)
	}
	for _, aud := range []any{"invoices", "*", audience + "2", audience[1:], "Orders", audience + " invoices", audience + "/"} {
		f.claim(verify.ErrAudience, 227, "aud", aud)
	}
	f.without(228, "sub")
	for _, sub := range []string{
		"alice", "https://example.org/x", "spiffe://example.org", "spiffe://example.org/", "spiffe:///x", "SPIFFE://example.org/x", "spiffe://Example.org/x",
		"spiffe://example.org/x/../y", "spiffe://example.org/%78", "spiffe://example.org//x", "spiffe://example.org/x/", "spiffe://example.org:443/x",
		"spiffe://a@example.org/x", "spiffe://example.org/x?y", "spiffe://example.org/x#y", "spiffe://example.org/" + strings.Repeat("x", 2048), "spiffe://[::1%25eth0]/x",
	} {
		f.add(verify.ErrMalformed, fmt.Sprintf("228 sub %.40s", sub), f.b.token(func(c map[string]any) { c["sub"], c["client_id"] = sub, sub }))
	}
	// Which workloads of other trust domains get tokens is the broker's to say; binding, and
	// verify.Workload, are the resource server's.
	foreign := "spiffe://partner.example/agent"
	f.add(nil, "228 sub of another trust domain", f.b.token(func(c map[string]any) { c["sub"], c["client_id"] = foreign, foreign }))
	f.claim(verify.ErrMalformed, 228, "client_id", serverID)
	f.without(229, "jti")
	for _, jti := range []any{"", nil, 7, []string{grantID}, "gnt_", "gnt_0x" + grantID[6:], rootTask, "GNT_00" + grantID[6:], "../" + grantID} {
		f.claim(verify.ErrMalformed, 229, "jti", jti)
	}
	for member, value := range map[string]any{"orders with a joiner": audience + "\u2060", "wide letters": "ｏｒｄｅｒｓ", "composed": "órders", "decomposed": "órders"} {
		f.add(verify.ErrAudience, "241 aud, "+member, f.b.token(func(c map[string]any) { c["aud"] = value }))
	}
	f.add(verify.ErrMalformed, "241 scope with a letter that looks alike", f.b.token(func(c map[string]any) { c["scope"] = "оrders:read" }))
	f.add(verify.ErrMalformed, "241 sub with a letter that looks alike", f.b.token(func(c map[string]any) {
		c["sub"], c["client_id"] = "spiffe://exаmple.org/x", "spiffe://exаmple.org/x"
	}))
	f.add(nil, "241 aud written with escapes", f.b.key.forge(f.t, f.with(""), strings.Replace(f.payload, `"aud":"orders"`, `"\u0061ud":"\u006frders"`, 1)))
}

func (f *forger) rest() {
	own := f.b.claims(nil)["cnf"].(map[string]any)["x5t#S256"].(string)
	f.add(verify.ErrUnbound, "230 cnf missing", f.b.token(func(c map[string]any) { delete(c, "cnf") }))
	f.add(verify.ErrUnbound, "230 cnf null", f.b.token(func(c map[string]any) { c["cnf"] = nil }))
	f.claim(verify.ErrUnbound, 230, "cnf", map[string]any{"x5t#S256": b64(make([]byte, 32))})
	for _, cnf := range []any{
		[]string{own}, own, map[string]any{}, map[string]any{"x5t#S256": own, "jkt": own}, map[string]any{"jkt": own}, map[string]any{"X5T#S256": own}, map[string]any{"x5t#S256": []string{own}},
		map[string]any{"x5t#S256": own + "="}, map[string]any{"x5t#S256": own[:42]}, map[string]any{"x5t#S256": ""}, map[string]any{"x5t#S256": nil},
	} {
		f.claim(verify.ErrMalformed, 230, "cnf", cnf)
	}
	f.without(231, "scope")
	for _, scope := range []any{nil, []string{"orders:read"}, 1, " orders:read", "orders:read ", "orders:read  orders:write", "orders:read\torders:write", "orders:\"read", "orders:\\read", strings.TrimSpace(strings.Repeat("a ", 65))} {
		f.claim(verify.ErrMalformed, 231, "scope", scope)
	}
	for _, scope := range []string{"", "orders:readonly", "orders", "*", "orders:*", "ORDERS:READ"} {
		f.claim(verify.ErrScope, 231, "scope", scope)
	}
	f.without(232, "ep")
	for _, ep := range []any{nil, epoch, []uint64{epoch}, []uint64{epoch, 0, 0}, []int64{0, 0}, []int64{-1, 0}, []int64{epoch, -1}, []string{"1", "2"}, json.RawMessage("[1e12,0]"), json.RawMessage("[18446744073709551616,0]")} {
		f.claim(verify.ErrMalformed, 232, "ep", ep)
	}
	f.claim(verify.ErrRevoked, 232, "ep", []uint64{epoch - 1, 1 << 63})
	f.claim(verify.ErrStale, 232, "ep", []uint64{epoch + 1, 0})
	f.claim(verify.ErrStale, 232, "ep", []uint64{1<<64 - 1, 0})
	// There is no status list. The claim means nothing, as any that is unknown.
	for _, status := range []any{nil, "x", map[string]any{"status_list": map[string]any{"idx": -1, "uri": "https://evil.example.com"}}, map[string]any{"status_list": map[string]any{"idx": 1 << 40}}} {
		f.claim(nil, 233, "status", status)
	}
}

// TestAttackTokens is the catalogue's 184 to 234 and 241, as far as they are one token each. All are
// signed with the right key, or with what a thief hopes that a verifier takes for it.
func TestAttackTokens(t *testing.T) {
	f := newForger(t)
	v := f.b.verifier(nil)
	for _, a := range f.corpus() {
		t.Run(a.name, func(t *testing.T) { judge(t, v, f.b, a) })
	}
	if _, err := v.Verify(t.Context(), f.b.token(nil), f.b.peer()); err != nil {
		t.Errorf("a good token after all of it: %v", err)
	}
}

func judge(t *testing.T, v *verify.Verifier, b *broker, a attack) {
	t.Helper()
	g, err := v.Verify(t.Context(), a.token, b.peer(), verify.Scope("orders:read"))
	if !errors.Is(err, a.want) || (g == nil) != (a.want != nil) {
		t.Errorf("got %v and %v, want %v", g, err, a.want)
	}
	if a.want != nil && err != nil && len(a.token) > 80 && strings.Contains(err.Error(), a.token[len(a.token)-20:]) {
		t.Errorf("the error has the token: %v", err)
	}
}

// numbered runs the attacks of the catalogue that have one of the numbers.
func numbered(t *testing.T, numbers ...int) {
	t.Helper()
	f := newForger(t)
	v := f.b.verifier(nil)
	ran := map[int]bool{}
	for _, a := range f.corpus() {
		number, err := strconv.Atoi(strings.Fields(a.name)[0])
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(numbers, number) {
			ran[number] = true
			t.Run(a.name, func(t *testing.T) { judge(t, v, f.b, a) })
		}
	}
	if len(ran) != len(numbers) {
		t.Errorf("of %v only %v are in the catalogue", numbers, ran)
	}
}

// TestAttackNumbers: no number between 184 and 241 was forgotten.
func TestAttackNumbers(t *testing.T) {
	elsewhere := map[string]string{
		"205": "TestAttackKeysInTime", "206": "TestAttackKeysInTime", "207": "TestAttackKeySets (247)", "224": "TestAttackKeysInTime",
		"235": "TestAttackMutations", "236": "TestAttackMutations", "237": "TestAttackMutations", "239": "TestAttackRequests", "240": "TestAttackRequests",
	}
	there := map[string]bool{}
	for _, a := range newForger(t).corpus() {
		number, rest, _ := strings.Cut(a.name, " ")
		if there[number] = true; rest == "" {
			t.Errorf("an attack has no name but its number %s", number)
		}
	}
	for number := 184; number <= 241; number++ {
		text := strconv.Itoa(number)
		if there[text] == (elsewhere[text] != "") {
			t.Errorf("number %d: in the catalogue %v, elsewhere %q", number, there[text], elsewhere[text])
		}
	}
}

// TestTwinSignature: whoever holds a token can make its twin, which is the same grant. A denial of the
// grant or the task is one of both, and the twin does not count as another use.
func TestTwinSignature(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	twin := twinOf(t, token)
	first := must(v.Verify(t.Context(), token, b.peer()))(t)
	second := must(v.Verify(t.Context(), twin, b.peer()))(t)
	if first.ID != second.ID || twin == token {
		t.Errorf("grants %s and %s", first.ID, second.ID)
	}
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	goesTo(t, v, b, token, verify.ErrRevoked)
	if err := refused(t, v, b, twin); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("the twin of a revoked token: %v", err)
	}
}

// twinOf is the token with the other signature that ECDSA has for it.
func twinOf(t *testing.T, token string) string {
	t.Helper()
	dot := strings.LastIndexByte(token, '.')
	signature := must(base64.RawURLEncoding.DecodeString(token[dot+1:]))(t)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return token[:dot+1] + b64(rawSignature(r, new(big.Int).Sub(elliptic.P256().Params().N, s)))
}

// TestAttackKeysInTime is 205, 206 and 224: a key counts from when it is published until it is not, and
// neither what it was in between nor dates of its own mean anything here. The broker alone has the
// private keys, and publishes none that must not count.
func TestAttackKeysInTime(t *testing.T) {
	b := newBroker(t, 1)
	next := newSigningKey(t, "ES256")
	dated := next.jwk(t)
	dated["nbf"], dated["exp"], dated["iat"] = time.Now().Unix()+3600, time.Now().Unix()-3600, time.Now().Unix()+3600
	b.keys = append(b.keys, dated)
	v := b.verifier(nil)
	token := next.sign(t, wire.TokenType, marshal(t, b.claims(nil)))
	if err := refused(t, v, b, token); err != nil {
		t.Errorf("206 and 224, a key that is not in use yet and has strange dates: %v", err)
	}
	b.change(func() { b.keys = b.keys[1:] })
	v.Status()
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
	goesTo(t, v, b, b.token(nil), verify.ErrSignature)    // 205
	if err := refused(t, v, b, token); err != nil {
		t.Errorf("the key that is left: %v", err)
	}
}

// TestAttackMutations is 235, 236 and 237: a token with a byte less, a bit flipped or a byte more,
// wherever, is refused. ES256 gets every bit of everything, the others every bit of the signature.
func TestAttackMutations(t *testing.T) {
	f := newForger(t)
	v := f.b.verifier(nil)
	canceled, cancel := context.WithCancel(t.Context())
	cancel() // unknown kids need not be waited for
	for _, key := range []*signingKey{f.b.key, f.ed, f.rsa} {
		t.Run(key.alg, func(t *testing.T) {
			t.Parallel()
			token := key.sign(t, wire.TokenType, []byte(f.payload))
			dot := strings.LastIndexByte(token, '.')
			refused := func(what string, at int, mutant string) {
				if _, err := v.Verify(canceled, mutant, f.b.peer()); err == nil {
					t.Errorf("%s at byte %d: accepted", what, at)
				}
			}
			if _, err := v.Verify(canceled, token, f.b.peer()); err != nil {
				t.Fatalf("the token itself: %v", err)
			}
			for i := range token {
				refused("235 cut", i, token[:i])
				refused("235 cut in front", i, token[i+1:])
				refused("237 a byte that is no letter", i, token[:i]+"="+token[i:])
				if key != f.b.key && i < dot && i%8 != 0 {
					continue
				}
				refused("235 left out", i, token[:i]+token[i+1:])
				refused("237 a byte twice", i, token[:i+1]+token[i:])
				for bit := range 8 {
					mutant := []byte(token)
					mutant[i] ^= 1 << bit
					refused("236 flipped", i, string(mutant))
				}
			}
			for c := range 256 {
				refused("237 appended", c, token+string([]byte{byte(c)}))
				refused("237 put in front", c, string([]byte{byte(c)})+token)
			}
		})
	}
}

// TestAttackRequests is 238, 239 and 240: how a token comes along.
func TestAttackRequests(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.Peer = func(*http.Request) *verify.Peer { return b.peer() } })
	token := b.token(nil)
	for name, c := range map[string]struct {
		header []string
		target string
		status int
	}{
		"238 Bearer":                           {[]string{"Bearer " + token}, "/", 0},
		"238 bearer in small letters":          {[]string{"bEARER " + token}, "/", 0}, // RFC 9110 §11.1
		"238 Bearer twice":                     {[]string{"Bearer Bearer " + token}, "/", 401},
		"238 two headers":                      {[]string{"Bearer " + token, "Bearer " + token}, "/", 401},
		"238 two headers, one empty":           {[]string{"", "Bearer " + token}, "/", 401},
		"238 a tab":                            {[]string{"Bearer\t" + token}, "/", 401},
		"238 two spaces":                       {[]string{"Bearer  " + token}, "/", 401},
		"238 a list":                           {[]string{"Bearer " + token + ", Bearer " + token}, "/", 401},
		"238 quotes":                           {[]string{`Bearer "` + token + `"`}, "/", 401},
		"238 Basic":                            {[]string{"Basic " + token}, "/", 401},
		"238 no scheme":                        {[]string{token}, "/", 401},
		"238 nothing":                          {[]string{"Bearer "}, "/", 401},
		"239 in the query":                     {nil, "/?access_token=" + token, 401},
		"239 in the query, and a bad header":   {[]string{"Bearer x"}, "/?access_token=" + token, 401},
		"240 DPoP, which is not spoken":        {[]string{"DPoP " + token}, "/", 401},
		"240 a DPoP-bound token, as if it was": {[]string{"DPoP " + b.token(func(c map[string]any) { c["cnf"] = map[string]any{"jkt": b64(make([]byte, 32))} })}, "/", 401},
		"240 a DPoP-bound token, as a bearer":  {[]string{"Bearer " + b.token(func(c map[string]any) { c["cnf"] = map[string]any{"jkt": b64(make([]byte, 32))} })}, "/", 401},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, c.target, nil)
			r.Header["Authorization"] = c.header
			r.Header.Set("X-Forwarded-Client-Cert", "anything")
			g, refusal := v.Authorize(r)
			switch {
			case c.status == 0 && refusal != nil:
				t.Errorf("refused: %v", refusal.Err)
			case c.status != 0 && (g != nil || refusal.Status != c.status || !strings.HasPrefix(refusal.Header.Get("WWW-Authenticate"), "Bearer ")):
				t.Errorf("got %v and %+v", g, refusal)
			}
		})
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("access_token="+token))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if g, _ := v.Authorize(r); g != nil {
		t.Error("239 accepted from the body")
	}
}
