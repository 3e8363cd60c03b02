package server_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
)

// outside is where the verifiers are that know nothing of this project but its metadata and keys.
const outside = "../../sdk/verify/outside"

// outsiders builds them, and returns how to start each: npm jose, golang-jwt with keyfunc, and jwx.
func outsiders(t *testing.T) map[string][]string {
	t.Helper()
	err := filepath.WalkDir(outside, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		_, err = os.ReadFile(path) // so that the test cache knows that it counts
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "jose", "node_modules", "jose")); err != nil {
		t.Fatal("the npm package jose is missing; run this first: make deps")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "./golangjwt", "./jwx")
	build.Dir = outside
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build in %s: %v\n%s", outside, err, out)
	}
	return map[string][]string{
		"jose":      {"node", filepath.Join(outside, "jose", "main.mjs")},
		"golangjwt": {filepath.Join(dir, "golangjwt")},
		"jwx":       {filepath.Join(dir, "jwx")},
	}
}

// outsider is a running one, as sdk/verify/outside/internal/lines describes it.
type outsider struct {
	t       *testing.T
	in      io.Writer
	answers *bufio.Scanner
	stderr  *bytes.Buffer
}

// run starts an outsider for the tokens of an issuer for the audience "orders". It trusts the replica's
// CA and keeps keys for a second.
func (r *replica) run(t *testing.T, command []string, issuer string) *outsider {
	t.Helper()
	var roots []byte
	for _, c := range r.ca.Bundle().X509Authorities() {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, roots, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "ERRAND_ISSUER="+issuer, "ERRAND_AUDIENCE=orders", "ERRAND_KEY_AGE=1s",
		"ERRAND_CA="+file, "NODE_EXTRA_CA_CERTS="+file)
	o := &outsider{t: t, stderr: &bytes.Buffer{}}
	cmd.Stderr = o.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, o.stderr)
		}
	})
	o.in, o.answers = in, bufio.NewScanner(out)
	return o
}

// verdict asks whose token it is, or why that is refused.
func (o *outsider) verdict(token string, caller *x509.Certificate) (subject, refusal string) {
	o.t.Helper()
	question, err := json.Marshal(map[string]any{"token": token, "certificate": caller.Raw})
	if err != nil {
		o.t.Fatal(err)
	}
	if _, err := o.in.Write(append(question, '\n')); err != nil {
		o.t.Fatalf("%v\n%s", err, o.stderr)
	}
	if !o.answers.Scan() {
		o.t.Fatalf("no answer: %v\n%s", o.answers.Err(), o.stderr)
	}
	var answer struct{ Subject, Error string }
	if err := json.Unmarshal(o.answers.Bytes(), &answer); err != nil || (answer.Subject == "") == (answer.Error == "") {
		o.t.Fatalf("answered %q: %v", o.answers.Bytes(), err)
	}
	return answer.Subject, answer.Error
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// edited is the payload of a token, after edit.
func edited(t *testing.T, token string, edit func(map[string]any)) []byte {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	if err := decoder.Decode(&claims); err != nil {
		t.Fatal(err)
	}
	edit(claims)
	if payload, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	return payload
}

// signed is a token with other claims, in the broker's own hand.
func (r *replica) signed(t *testing.T, token string, edit func(map[string]any)) string {
	t.Helper()
	signer, err := r.Keys().Signer()
	if err != nil {
		t.Fatal(err)
	}
	out, err := signer.Sign(edited(t, token, edit))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOutsideVerifiers: programs that have nothing but the issuer's address, and the code that
// sdk/verify/outside has for them, tell good tokens from bad ones, with each algorithm. What they
// cannot know without the feed is shown as well: the token of a task that has ended is good until exp.
func TestOutsideVerifiers(t *testing.T) {
	commands := outsiders(t)
	for _, algorithm := range []keys.Algorithm{keys.ES256, keys.RS256, keys.Ed25519} {
		for name, command := range commands {
			t.Run(string(algorithm)+"/"+name, func(t *testing.T) {
				t.Parallel()
				r := startFederated(t, nil, func(c *server.Config) { c.Algorithm = algorithm })
				o := r.run(t, command, r.Issuer())
				c, peer := r.bearer(reportID)
				begun := c.beginAs(`{"name":"export","purpose":"FIN-212","tokens":[{"audience":"orders"},{"audience":"files"}]}`)
				good, files := begun.Tokens[0].AccessToken, begun.Tokens[1].AccessToken
				if begun.Tokens[0].Audience != "orders" {
					good, files = files, good
				}
				accepted(t, o, "a good token", good, peer.Certificate)
				if _, refusal := o.verdict(good, r.certificate(ordersID).Leaf); !strings.Contains(refusal, "another certificate") {
					t.Errorf("a stolen token: %q", refusal)
				}
				bad := r.misissued(t, good)
				bad["the token for another audience"] = files
				for name, token := range bad {
					refused(t, o, name, token, peer.Certificate)
				}
				for name, token := range r.forged(t, good) {
					refused(t, o, name, token, peer.Certificate)
				}

				c.end(begun.Task.ID, "completed")
				accepted(t, o, "a token whose task has ended", good, peer.Certificate)

				kid := r.activeKey()
				if _, err := r.Broker().Revoke(t.Context(), broker.Revocation{Key: kid, Actor: "ada", Reason: "INC-7"}); err != nil {
					t.Fatal(err)
				}
				accepted(t, o, "a token of the next key", c.begin().Tokens[0].AccessToken, peer.Certificate)
				r.eventually("the removed key is let go of", func() bool {
					_, refusal := o.verdict(good, peer.Certificate)
					return refusal != ""
				})
				accepted(t, o, "a token of the next key, afterwards", c.begin().Tokens[0].AccessToken, peer.Certificate)
			})
		}
	}
}

func accepted(t *testing.T, o *outsider, name, token string, caller *x509.Certificate) {
	t.Helper()
	if subject, refusal := o.verdict(token, caller); subject != reportID {
		t.Errorf("%s: subject %q, refusal %q", name, subject, refusal)
	}
}

func refused(t *testing.T, o *outsider, name, token string, caller *x509.Certificate) {
	t.Helper()
	if subject, _ := o.verdict(token, caller); subject != "" {
		t.Errorf("accepted: %s", name)
	}
}

// misissued are tokens that only a broker could sign that has gone wrong.
func (r *replica) misissued(t *testing.T, good string) map[string]string {
	now := time.Now().Unix()
	out := map[string]string{}
	for name, edit := range map[string]func(map[string]any){
		"another issuer":         func(c map[string]any) { c["iss"] = "https://other.example.com" },
		"the issuer and a slash": func(c map[string]any) { c["iss"] = r.Issuer() + "/" },
		"issuers":                func(c map[string]any) { c["iss"] = []string{r.Issuer()} },
		"no issuer":              func(c map[string]any) { delete(c, "iss") },
		"another audience":       func(c map[string]any) { c["aud"] = "order" },
		"two audiences":          func(c map[string]any) { c["aud"] = []string{"orders", "files"} },
		"no audience":            func(c map[string]any) { delete(c, "aud") },
		"expired":                func(c map[string]any) { c["iat"], c["exp"] = now-70, now-10 },
		"no expiry":              func(c map[string]any) { delete(c, "exp") },
		"expiry is no number":    func(c map[string]any) { c["exp"] = "never" },
		"issued in the future":   func(c map[string]any) { c["iat"], c["exp"] = now+60, now+120 },
		"no certificate":         func(c map[string]any) { delete(c, "cnf") },
	} {
		out[name] = r.signed(t, good, edit)
	}
	return out
}

// forged are tokens that anybody can make who has seen a good one and the published keys.
func (r *replica) forged(t *testing.T, good string) map[string]string {
	parts := strings.Split(good, ".")
	payload, signature := parts[1], parts[2]
	kid := r.activeKey()
	header := func(alg, kid, more string) string {
		return b64(fmt.Appendf(nil, `{"typ":"at+jwt","alg":%q,"kid":%q%s}`, alg, kid, more))
	}
	out := map[string]string{
		"other claims":       parts[0] + "." + b64(edited(t, good, func(c map[string]any) { c["scope"] = "orders:write" })) + "." + signature,
		"no signature":       parts[0] + "." + payload + ".",
		"a signature cut":    good[:len(good)-2],
		"a signature of 0":   parts[0] + "." + payload + "." + b64(make([]byte, 64)),
		"four parts":         good + "." + signature,
		"the JSON form":      fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], payload, signature),
		"base64 with a plus": parts[0] + "." + payload + ".+" + signature[1:],
	}
	for _, alg := range []string{"none", "None", "nOnE", "", "ES384", "PS256"} {
		out["alg "+alg] = header(alg, kid, "") + "." + payload + "."
		out["alg "+alg+", with the signature"] = header(alg, kid, "") + "." + payload + "." + signature
	}
	for _, other := range []string{"", "unknown", "../../dev/null"} {
		out["kid "+other] = header("ES256", other, "") + "." + payload + "." + signature
	}
	jwk, text := r.publicKey(t, kid)
	for name, secret := range map[string][]byte{"JWK": jwk, "PEM": text, "nothing": nil} {
		input := header("HS256", kid, "") + "." + payload
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		out["HMAC with "+name] = input + "." + b64(mac.Sum(nil))
	}
	evil := newKey(t)
	own, err := json.Marshal(jose.JSONWebKey{Key: evil.Public(), KeyID: kid, Algorithm: "ES256"})
	if err != nil {
		t.Fatal(err)
	}
	tempter := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a header's URL was asked") }))
	t.Cleanup(tempter.Close)
	for name, more := range map[string]string{"key": "", "jwk": `,"jwk":` + string(own), "jku": fmt.Sprintf(`,"jku":%q`, tempter.URL), "x5u": fmt.Sprintf(`,"x5u":%q`, tempter.URL)} {
		out["the thief's "+name] = signES256(t, evil, header("ES256", kid, more)+"."+payload)
	}
	return out
}

// publicKey is a published key as it is published, and in PEM.
func (r *replica) publicKey(t *testing.T, kid string) (jwk, text []byte) {
	t.Helper()
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(r.Keys().Set().JSON, &set); err != nil {
		t.Fatal(err)
	}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err != nil {
			t.Fatal(err)
		}
		if k.KeyID == kid {
			der, err := x509.MarshalPKIXPublicKey(k.Key)
			if err != nil {
				t.Fatal(err)
			}
			return raw, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		}
	}
	t.Fatalf("%s is not published", kid)
	return nil, nil
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signES256 signs header and payload (RFC 7518 §3.4).
func signES256(t *testing.T, key *ecdsa.PrivateKey, input string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + b64(signature)
}

// TestOutsideVerifiersReadTheHeader: an issuer that signs other JWTs with the key of its tokens does not
// have them taken for tokens.
func TestOutsideVerifiersReadTheHeader(t *testing.T) {
	r := start(t)
	c, peer := r.bearer(reportID)
	good := c.begin().Tokens[0].AccessToken
	key := newKey(t)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	issuer := httptest.NewUnstartedServer(nil)
	issuer.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == wire.PathJWKS {
			_, _ = w.Write(set)
			return
		}
		_ = json.NewEncoder(w).Encode(wire.Metadata{Issuer: issuer.URL, JWKSURI: issuer.URL + wire.PathJWKS})
	})
	issuer.TLS = &tls.Config{Certificates: []tls.Certificate{r.certificate(brokerID)}, MinVersion: tls.VersionTLS13}
	issuer.StartTLS()
	t.Cleanup(issuer.Close)
	payload := b64(edited(t, good, func(c map[string]any) { c["iss"] = issuer.URL }))
	for name, command := range outsiders(t) {
		t.Run(name, func(t *testing.T) {
			o := r.run(t, command, issuer.URL)
			for header, good := range map[string]bool{
				`{"typ":"at+jwt","alg":"ES256","kid":"k"}`:                                 true,
				`{"typ":"application/at+jwt","alg":"ES256","kid":"k"}`:                     true,
				`{"typ":"JWT","alg":"ES256","kid":"k"}`:                                    false,
				`{"typ":"secevent+jwt","alg":"ES256","kid":"k"}`:                           false,
				`{"typ":"at+jwt2","alg":"ES256","kid":"k"}`:                                false,
				`{"alg":"ES256","kid":"k"}`:                                                false,
				`{"typ":"at+jwt","alg":"RS256","kid":"k"}`:                                 false,
				`{"typ":"at+jwt","alg":"EdDSA","kid":"k"}`:                                 false,
				`{"typ":"at+jwt","alg":"ES256","kid":"other"}`:                             false,
				`{"typ":"at+jwt","alg":"ES256","kid":"k","crit":["exp"]}`:                  false,
				`{"typ":"at+jwt","alg":"ES256","kid":"k","b64":false,"crit":["b64"]}`:      false,
				`{"typ":"at+jwt","alg":"ES256","kid":"k","x-later":"means nothing today"}`: true,
			} {
				token := signES256(t, key, b64([]byte(header))+"."+payload)
				if subject, refusal := o.verdict(token, peer.Certificate); (subject == reportID) != good {
					t.Errorf("%s: subject %q, refusal %q", header, subject, refusal)
				}
			}
		})
	}
}
