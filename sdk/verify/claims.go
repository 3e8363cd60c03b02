package verify

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	maxPath   = 8  // tasks from the root (and actors) that a token can name
	maxScopes = 64 // in one token
	maxKid    = 64 // bytes

	maxScopeBytes = 256 // of a scope that a route can ask for: the broker's own limit

	maxSubjectBytes = 2048 // of a SPIFFE ID (SPIFFE-ID §2)

	maxDate = 253402300799 // the end of the year 9999; much later ones overflow time.Time
)

// header is the protected header. The members that could bring a key, a URL or a meaning of their
// own with them are there to be refused.
type header struct {
	Type      string `json:"typ"`
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`

	JWK  json.RawMessage `json:"jwk"`
	JKU  json.RawMessage `json:"jku"`
	X5U  json.RawMessage `json:"x5u"`
	X5C  json.RawMessage `json:"x5c"`
	Crit json.RawMessage `json:"crit"`
	Zip  json.RawMessage `json:"zip"`
	B64  json.RawMessage `json:"b64"`
	Cty  json.RawMessage `json:"cty"`
}

// parseHeader checks the token's size and shape, and returns its header if that is one of an access
// token. Nothing in it has been verified.
func parseHeader(token string) (header, error) {
	var h header
	first, err := shape(token)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(first, &h); err != nil || first[0] != '{' || !utf8.Valid(first) {
		return h, malformed("the header is not a JSON object with text members, each once")
	}
	for _, member := range []json.RawMessage{h.JWK, h.JKU, h.X5U, h.X5C, h.Crit, h.Zip, h.B64, h.Cty} {
		if member != nil {
			return h, malformed("the header has one of the members jwk, jku, x5u, x5c, crit, zip, b64 and cty")
		}
	}
	switch {
	case h.Type != wire.TokenType && h.Type != "application/"+wire.TokenType:
		return h, malformed("typ is not " + wire.TokenType)
	case !isAlgorithm(jose.SignatureAlgorithm(h.Algorithm)):
		return h, malformed("alg is none of those that are accepted")
	case !isKeyID(h.KeyID):
		return h, malformed("kid is missing or not a key's name")
	}
	return h, nil
}

// shape decodes the first part of a compact JWS (RFC 7515 §7.1), having looked at every byte of all
// three. Each must be the one way to write what it says.
func shape(token string) ([]byte, error) {
	switch {
	case token == "":
		return nil, ErrMissing
	case len(token) > wire.MaxTokenBytes:
		return nil, malformed(fmt.Sprintf("it has more than %d bytes", wire.MaxTokenBytes))
	case strings.Count(token, ".") != 2:
		return nil, malformed("it does not have three parts")
	}
	var first []byte
	for i, part := range strings.SplitN(token, ".", 3) {
		for j := range len(part) {
			if !isBase64URL(part[j]) {
				return nil, malformed("it has a character outside base64url")
			}
		}
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(decoded) == 0 {
			return nil, malformed(fmt.Sprintf("part %d is not base64url", i+1))
		}
		if i == 0 {
			first = decoded
		}
	}
	return first, nil
}

func isBase64URL(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

func isKeyID(kid string) bool {
	for i := range len(kid) {
		if !isBase64URL(kid[i]) {
			return false
		}
	}
	return kid != "" && len(kid) <= maxKid
}

// claims shadows those members of wire.Claims whose absence or exact form matters.
type claims struct {
	wire.Claims
	Scope        *string                    `json:"scope"`
	Epoch        []uint64                   `json:"ep"`
	NotBefore    *int64                     `json:"nbf"`
	Confirmation map[string]json.RawMessage `json:"cnf"`
}

// parseClaims reads a payload whose signature is good. It returns the grant and the issuer, having
// checked that every required claim is there, once and of its type, and that they fit together.
func parseClaims(payload []byte) (g *Grant, c claims, err error) {
	if err := json.Unmarshal(payload, &c); err != nil || !utf8.Valid(payload) {
		return nil, c, malformed("a claim is of the wrong type or not UTF-8, or there twice")
	}
	switch {
	case c.Issuer == "" || c.Audience == "" || c.Scope == nil || c.Task.Name == "":
		return nil, c, malformed("one of the claims iss, aud, scope and task.name is missing")
	case c.IssuedAt <= 0 || c.Expiry <= c.IssuedAt:
		return nil, c, malformed("iat or exp is missing, or exp is not after iat")
	case c.Expiry > maxDate || c.NotBefore != nil && (*c.NotBefore < 0 || *c.NotBefore > maxDate):
		return nil, c, malformed("exp or nbf is no date of this age")
	case len(c.Epoch) != 2 || c.Epoch[0] == 0:
		return nil, c, malformed("ep is not an epoch and a number")
	}
	g = &Grant{
		ID: c.ID, Workload: c.Subject, Client: c.ClientID, Audience: c.Audience,
		Task:   Task{ID: c.Task.ID, Root: c.Transaction, Path: c.Task.Path, Name: c.Task.Name},
		Issued: time.Unix(c.IssuedAt, 0).UTC(), Expires: time.Unix(c.Expiry, 0).UTC(),
		epoch: c.Epoch[0], number: c.Epoch[1],
	}
	if g.Scopes, err = parseScope(*c.Scope); err != nil {
		return nil, c, err
	}
	if err := checkDetails(c.AuthorizationDetails); err != nil {
		return nil, c, err
	}
	g.Details = c.AuthorizationDetails
	if err := placeInTask(g); err != nil {
		return nil, c, err
	}
	if err := nameActors(g, c.Actor); err != nil {
		return nil, c, err
	}
	if g.thumbprint, err = thumbprint(c.Confirmation); err != nil {
		return nil, c, err
	}
	return g, c, nil
}

// parseScope splits at single spaces (RFC 6749 §3.3). No scope at all is fine: the token then opens
// only what needs none.
func parseScope(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	scopes := strings.Split(text, " ")
	if len(scopes) > maxScopes {
		return nil, malformed(fmt.Sprintf("it has more than %d scopes", maxScopes))
	}
	for _, scope := range scopes {
		if scope == "" || strings.ContainsFunc(scope, notNameRune) {
			return nil, malformed("scope is not a list of scopes with one space in between")
		}
	}
	return scopes, nil
}

// placeInTask checks that grant and path are of one shard and one tree, and notes the shard.
func placeInTask(g *Grant) error {
	path := g.Task.Path
	if len(path) == 0 || len(path) > maxPath || path[0] != g.Task.Root || path[len(path)-1] != g.Task.ID {
		return malformed("task.path does not lead from txn to task.id")
	}
	shard, ok := wire.Shard(g.ID)
	if !ok || !strings.HasPrefix(g.ID, "gnt_") {
		return malformed("jti is not the ID of a grant")
	}
	for _, id := range path {
		of, ok := wire.Shard(id)
		if !ok || of != shard || !strings.HasPrefix(id, "tsk_") {
			return malformed("task.path has something that is not the ID of a task, or one of another shard")
		}
	}
	g.shard = shard
	return nil
}

// nameActors checks the subjects. The presenter is the subject itself, or the outermost actor (RFC 8693 §4.1).
// Who joins a task does so one step further down, so that there are fewer actors than tasks on the path.
func nameActors(g *Grant, actor *wire.Actor) error {
	presenter := g.Workload
	if actor != nil {
		presenter = actor.Subject
	}
	for ; actor != nil; actor = actor.Actor {
		if len(g.Actors)+1 >= len(g.Task.Path) {
			return malformed("act names more actors than have joined on the way to task.id")
		}
		g.Actors = append(g.Actors, actor.Subject)
	}
	if g.Client != presenter {
		return malformed("client_id is not who presents it")
	}
	last := "" // nobody acts in its own name
	for _, id := range append(slices.Clone(g.Actors), g.Workload) {
		switch {
		case !isSPIFFEID(id):
			return malformed("sub or act.sub is not the SPIFFE ID of a workload")
		case id == last:
			return malformed("act has an actor that acts for itself")
		}
		last = id
	}
	return nil
}

// thumbprint returns the certificate that a token is bound to (RFC 8705 §3.1). A confirmation that
// is not understood is refused, not ignored.
func thumbprint(confirmation map[string]json.RawMessage) (string, error) {
	if confirmation == nil {
		return "", nil
	}
	var text string
	raw, ok := confirmation["x5t#S256"]
	if !ok || len(confirmation) != 1 || json.Unmarshal(raw, &text) != nil {
		return "", malformed("cnf is not x5t#S256 alone")
	}
	if sum, err := base64.RawURLEncoding.Strict().DecodeString(text); err != nil || len(sum) != 32 {
		return "", malformed("cnf x5t#S256 is not a thumbprint")
	}
	return text, nil
}

// isSPIFFEID reports whether id is the SPIFFE ID of a workload: normalised, with a path (SPIFFE-ID
// §2, X509-SVID §5.2).
func isSPIFFEID(id string) bool {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok || len(id) > maxSubjectBytes {
		return false
	}
	domain, path, ok := strings.Cut(rest, "/")
	if !ok || domain == "" || strings.ContainsFunc(domain, func(r rune) bool { return !isDomainRune(r) }) {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, func(r rune) bool {
			return !isDomainRune(r) && (r < 'A' || r > 'Z')
		}) {
			return false
		}
	}
	return true
}

func isDomainRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_'
}

func malformed(detail string) error { return fmt.Errorf("%w: %s", ErrMalformed, detail) }
