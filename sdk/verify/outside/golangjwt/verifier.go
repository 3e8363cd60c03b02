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

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

// claims are what a token says.
type claims struct {
	jwt.RegisteredClaims
	Client       string `json:"client_id"`
	Scope        string `json:"scope"`
	Confirmation struct {
		Thumbprint string `json:"x5t#S256"`
	} `json:"cnf"`
}

// verifier accepts the tokens of one issuer for one audience.
type verifier struct {
	keys   keyfunc.Keyfunc
	parser *jwt.Parser
}

// newVerifier finds the keys by the issuer's metadata and fetches them again each keyAge: one minute,
// as the issuer's Cache-Control says. Its goroutine ends with ctx.
func newVerifier(ctx context.Context, client *http.Client, issuer, audience string, keyAge time.Duration) (*verifier, error) {
	address, err := keySet(ctx, client, issuer)
	if err != nil {
		return nil, err
	}
	later := false
	keys, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{address}, keyfunc.Override{
		Client: client, RefreshInterval: keyAge, NoErrorReturnFirstHTTPReq: &later,
		// A stranger's kid costs one request in ten seconds, and whoever brings another waits no longer.
		RefreshUnknownKID: rate.NewLimiter(rate.Every(10*time.Second), 1), RateLimitWaitMax: 100 * time.Millisecond,
	})
	if err != nil {
		return nil, err
	}
	return &verifier{keys: keys, parser: jwt.NewParser(
		jwt.WithValidMethods([]string{"ES256", "RS256", "EdDSA"}), jwt.WithStrictDecoding(),
		jwt.WithIssuer(issuer), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(5*time.Second),
	)}, nil
}

// verify returns what a token says that caller, whose certificate the handshake has proven, presents.
func (v *verifier) verify(token string, caller *x509.Certificate) (*claims, error) {
	if len(token) > 8<<10 {
		return nil, errors.New("the token is too long")
	}
	c := &claims{}
	parsed, err := v.parser.ParseWithClaims(token, c, v.keys.Keyfunc)
	if err != nil {
		return nil, err
	}
	typ, _ := parsed.Header["typ"].(string)
	thumbprint := sha256.Sum256(caller.Raw)
	_, critical := parsed.Header["crit"]
	switch {
	case critical:
		return nil, errors.New("the header has crit, which is not understood")
	case !strings.EqualFold(strings.TrimPrefix(typ, "application/"), "at+jwt"):
		return nil, fmt.Errorf("typ is %q: it is no access token", typ)
	case len(c.Audience) != 1:
		return nil, errors.New("the token is for more than one audience")
	case c.Confirmation.Thumbprint != base64.RawURLEncoding.EncodeToString(thumbprint[:]):
		return nil, errors.New("the token is bound to another certificate")
	}
	return c, nil
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
