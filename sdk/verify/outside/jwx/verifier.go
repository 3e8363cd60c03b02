package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

// verifier accepts the tokens of one issuer for one audience.
type verifier struct {
	issuer, audience string
	keys             jwk.Set
}

// newVerifier finds the keys by the issuer's metadata and fetches them again each keyAge: one minute,
// as the issuer's Cache-Control says. Its goroutines end with ctx.
func newVerifier(ctx context.Context, client *http.Client, issuer, audience string, keyAge time.Duration) (*verifier, error) {
	address, err := keySet(ctx, client, issuer)
	if err != nil {
		return nil, err
	}
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		return nil, err
	}
	if err := cache.Register(ctx, address, jwk.WithHTTPClient(client), jwk.WithConstantInterval(keyAge), jwk.WithRejectDuplicateKID(true)); err != nil {
		return nil, err
	}
	keys, err := cache.CachedSet(address)
	return &verifier{issuer: issuer, audience: audience, keys: keys}, err
}

// verify returns what a token says that caller, whose certificate the handshake has proven, presents.
func (v *verifier) verify(token string, caller *x509.Certificate) (jwt.Token, error) {
	if len(token) > 8<<10 {
		return nil, errors.New("the token is too long")
	}
	var signature *jws.Signature
	payload, err := jws.Verify([]byte(token), jws.WithCompact(), jws.WithKeySet(v.keys, jws.WithRequireKid(true)),
		jws.WithAlgorithmMatch(true), jws.WithCritValidation(true), jws.WithVerifiedSignature(&signature))
	if err != nil {
		return nil, err
	}
	if typ, _ := signature.ProtectedHeaders().Type(); !strings.EqualFold(strings.TrimPrefix(typ, "application/"), "at+jwt") {
		return nil, fmt.Errorf("typ is %q: it is no access token", typ)
	}
	parsed, err := jwt.Parse(payload, jwt.WithVerify(false), jwt.WithIssuer(v.issuer), jwt.WithAudience(v.audience),
		jwt.WithRequiredClaim("exp"), jwt.WithRequiredClaim("iat"), jwt.WithAcceptableSkew(5*time.Second))
	if err != nil {
		return nil, err
	}
	if audiences, _ := parsed.Audience(); len(audiences) != 1 {
		return nil, errors.New("the token is for more than one audience")
	}
	var confirmation map[string]any
	thumbprint := sha256.Sum256(caller.Raw)
	if err := parsed.Get("cnf", &confirmation); err != nil || confirmation["x5t#S256"] != base64.RawURLEncoding.EncodeToString(thumbprint[:]) {
		return nil, errors.New("the token is bound to another certificate")
	}
	return parsed, nil
}

// keySet returns the address of the issuer's keys (RFC 8414 §3).
func keySet(ctx context.Context, client *http.Client, issuer string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, issuer+"/.well-known/oauth-authorization-server", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var metadata struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, response.Body, 64<<10)).Decode(&metadata); err != nil {
		return "", err
	}
	if metadata.Issuer != issuer {
		return "", fmt.Errorf("the metadata is of issuer %q", metadata.Issuer)
	}
	return metadata.Keys, nil
}
