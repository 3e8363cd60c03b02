package verify

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/errandhq/errand/sdk/wire"
)

// glances is how often Explain takes a snapshot when the feed moves on between it and its proof.
const glances = 3

// Case is what Explain is to judge.
type Case struct {
	Token        string
	Peer         *Peer // who presents it; nil leaves the check of the binding open
	Requirements []Requirement

	// Keys is a JWK Set to judge by. With it nobody is asked: Config needs neither TLS nor Files, and
	// what the feed would say stays open.
	Keys []byte
}

// Step is one of the checks that Verify makes.
type Step struct {
	Name   string
	Err    error  // why the token would be refused here; matches one of this package's
	Open   bool   // the check could not be made
	Detail string // what was found, or why it is open
}

// Explanation is why a token would be accepted or refused.
type Explanation struct {
	Steps  []Step // in the order of Verify, all of them, also those after a refusal
	Issuer string // the iss claim
	Grant  *Grant // what the token says; nil if that cannot be read
	Signed bool   // its signature is good; until then Issuer and Grant are hearsay
}

// Err is the first refusal: what Verify would return. It is nil, too, when steps are open.
func (e *Explanation) Err() error {
	for _, s := range e.Steps {
		if s.Err != nil {
			return s.Err
		}
	}
	return nil
}

// Accepted reports whether every check was made and passed.
func (e *Explanation) Accepted() bool {
	for _, s := range e.Steps {
		if s.Err != nil || s.Open {
			return false
		}
	}
	return true
}

// Explain says, check by check, why a verifier with this configuration would accept or refuse a token
// now. It is for people who look for a fault, not for requests: it fetches the keys and a snapshot of the
// feed for this one token, and keeps nothing. Without the right to read the audience's feed, what that
// would say is open. The error is a configuration that cannot work, or says that the keys could not be
// had; then there is an explanation all the same, as far as it goes.
func Explain(ctx context.Context, c Config, q Case) (*Explanation, error) {
	if q.Keys != nil {
		c.TLS, c.Files = &tls.Config{}, nil // nobody is asked
	}
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	v := &Verifier{config: c, keys: newKeyring(c.Now), view: newView(c), running: newRunning(1)}
	feed := errors.New("nobody was asked")
	if q.Keys != nil {
		var keys map[string]*key
		if keys, err = parseKeys(q.Keys); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		v.keys.done(keys, q.Keys, c.Now())
	} else {
		private, public, bad := clientTLS(c)
		if bad != nil {
			return nil, bad
		}
		v.issuer = newIssuer(c, private, public)
		defer v.issuer.close()
		if _, err = v.fetchKeys(ctx); err == nil {
			feed = v.glance(ctx)
		}
	}
	x := &examination{v: v, q: q, now: c.Now(), feed: feed, keys: err}
	x.examine(ctx)
	if err != nil {
		err = fmt.Errorf("verify: the keys of %s could not be had: %w", c.Issuer, err)
	}
	return &x.Explanation, err
}

// glance takes a snapshot of the feed and proves that it is fresh.
func (v *Verifier) glance(ctx context.Context) error {
	for range glances {
		if err := v.takeSnapshot(ctx); err != nil {
			return err
		}
		if err := v.proveOnce(ctx, fetchTimeout); err != nil {
			return err
		}
		if ok, _ := v.view.freshness(v.config.Now()); ok {
			return nil
		}
	}
	return errors.New("it moved on while it was read; try again")
}

// examination is one Explain under way.
type examination struct {
	Explanation
	v    *Verifier
	q    Case
	now  time.Time
	feed error // why the feed is not known
	keys error // why the keys are not
}

func (x *examination) step(name string, err error, format string, args ...any) {
	x.Steps = append(x.Steps, Step{Name: name, Err: err, Detail: fmt.Sprintf(format, args...)})
}

func (x *examination) open(name, format string, args ...any) {
	x.Steps = append(x.Steps, Step{Name: name, Open: true, Detail: fmt.Sprintf(format, args...)})
}

func (x *examination) examine(ctx context.Context) {
	h, ok := x.header()
	if !ok {
		return
	}
	c, ok := x.signature(h)
	if !ok {
		return
	}
	x.claims(c)
	x.alive()
	switch g := x.Grant; {
	case g.thumbprint == "" && x.v.config.Binding == ByCertificate, x.v.config.Binding == Unbound, x.q.Peer != nil:
		x.step("binding", x.v.presented(g, x.q.Peer, x.now), "%s", x.bound())
	default:
		x.open("binding", "%s; nobody presents it here", x.bound())
	}
	x.step("requirements", meets(ctx, x.Grant, x.q.Requirements), "it has the scopes %q", strings.Join(x.Grant.Scopes, " "))
}

// header makes the checks of parseHeader, and says which one it is that fails.
func (x *examination) header() (h header, ok bool) {
	first, err := shape(x.q.Token)
	if err == nil && json.Unmarshal(first, &h) != nil {
		_, err = parseHeader(x.q.Token)
	}
	if err != nil {
		x.step("structure", err, "%d bytes", len(x.q.Token))
		return h, false
	}
	_, err = parseHeader(x.q.Token)
	fails := func(good bool) error {
		if good {
			return nil
		}
		return err
	}
	typ := h.Type == wire.TokenType || h.Type == "application/"+wire.TokenType
	alg := isAlgorithm(jose.SignatureAlgorithm(h.Algorithm))
	x.step("structure", fails(!typ || !alg || !isKeyID(h.KeyID)), "%d bytes in three parts", len(x.q.Token))
	x.step("type", fails(typ), "typ is %q", h.Type)
	x.step("algorithm", fails(alg), "alg is %q", h.Algorithm)
	return h, true
}

// signature looks for the key, checks the signature, and reads the claims also when it is not good. It
// returns false when there is nothing to go on with.
func (x *examination) signature(h header) (c claims, ok bool) {
	_, bad := parseHeader(x.q.Token)
	k := x.v.keys.get(h.KeyID)
	var payload []byte
	switch {
	case !isKeyID(h.KeyID):
		x.step("key", bad, "kid is %q", h.KeyID)
	case x.keys != nil:
		x.open("key", "the issuer's keys could not be had: %v", x.keys)
		x.open("signature", "there is no key to check it with")
	case k == nil:
		x.step("key", fmt.Errorf("%w: %s", ErrSignature, x.unknownKey(h.KeyID)), "kid is %s", h.KeyID)
	default:
		x.step("key", nil, "kid is %s, one of the issuer's %d", h.KeyID, len(x.v.keys.names()))
		var err error
		payload, err = k.verify(x.q.Token, h.Algorithm)
		x.step("signature", err, "by the key's own algorithm, %s", k.algorithm)
		x.Signed = err == nil && bad == nil
	}
	if payload == nil {
		payload, _ = base64.RawURLEncoding.DecodeString(strings.Split(x.q.Token, ".")[1]) // shape has looked at it
	}
	g, c, err := parseClaims(payload)
	x.Issuer, x.Grant = c.Issuer, g
	if err == nil {
		g.key = h.KeyID
		x.step("claims", nil, "all are there, and fit together")
		return c, true
	}
	// Of a token of another kind, who made it is often all that there is to learn.
	var loose struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &loose) == nil && loose.Issuer != "" && loose.Issuer != x.v.config.Issuer {
		x.Issuer = loose.Issuer
	}
	x.step("claims", err, "iss is %q", x.Issuer)
	return c, false
}

func (x *examination) unknownKey(kid string) string {
	if _, dead := x.v.view.keys[kid]; dead {
		return "the key was revoked, and is not in the issuer's set any more"
	}
	return "the key is not in the issuer's set"
}

// claims checks who made the token, for whom, and when: each with the others out of the way.
func (x *examination) claims(c claims) {
	config := x.v.config
	with := func(edit func(*claims)) error {
		same := c
		same.Issuer, same.Audience = config.Issuer, config.Audience
		same.IssuedAt, same.Expiry, same.NotBefore = x.now.Unix(), x.now.Unix()+1, nil
		edit(&same)
		return x.v.inForce(same, x.now)
	}
	x.step("issuer", with(func(s *claims) { s.Issuer = c.Issuer }), "iss is %q", c.Issuer)
	x.step("audience", with(func(s *claims) { s.Audience = c.Audience }), "aud is %q", c.Audience)
	x.step("expiry", with(func(s *claims) { s.IssuedAt, s.Expiry, s.NotBefore = c.IssuedAt, c.Expiry, c.NotBefore }),
		"issued %s, expires %s", x.Grant.Issued.Format(time.RFC3339), x.Grant.Expires.Format(time.RFC3339))
}

// alive checks what the feed says.
func (x *examination) alive() {
	if x.feed != nil {
		x.open("feed", "not consulted: %v", x.feed)
		x.open("denials", "only the feed knows whether it was revoked, or its task has ended")
		return
	}
	position, _ := x.v.view.at()
	_, old := x.v.view.freshness(x.now)
	x.step("feed", nil, "position %s, %s old", position, max(0, old).Round(time.Millisecond))
	x.v.view.mu.RLock()
	defer x.v.view.mu.RUnlock()
	err := x.v.view.denied(x.Grant)
	x.step("denials", err, "%s", cmp.Or(x.v.view.why(x.Grant), "nothing that was revoked or has ended covers it"))
}

// bound says what the token is bound to.
func (x *examination) bound() string {
	if g := x.Grant; g.thumbprint != "" {
		return fmt.Sprintf("bound to the certificate %s of %s", g.thumbprint, g.Client)
	}
	return "bound to no certificate"
}

// why says what it is that denies the grant, and nothing when nothing does. It is called with mu held.
func (v *view) why(g *Grant) string {
	switch {
	case g.epoch < v.position.Epoch:
		return "it was issued before the broker's data were lost or replaced"
	case g.epoch > v.position.Epoch || g.shard >= len(v.position.Numbers):
		return "it is of a data set that the feed does not have"
	}
	if _, dead := v.ids[g.ID]; dead {
		return "its grant " + g.ID + " was revoked"
	}
	for _, id := range g.Task.Path {
		if _, dead := v.ids[id]; dead && id == g.Task.ID {
			return "its task " + id + " has ended"
		} else if dead {
			return "the task " + id + ", above its own, has ended"
		}
	}
	if _, dead := v.keys[g.key]; dead {
		return "its key " + g.key + " was revoked"
	}
	for _, subject := range append([]string{"", g.Workload, g.Client}, g.Actors...) {
		if place, found := v.selects(subject, g); found {
			return "it was revoked with " + place
		}
	}
	return ""
}

// selects looks for a selection of a subject, or of what it is below, and names it.
func (d *denials) selects(subject string, g *Grant) (string, bool) {
	if d.selectedAt(subject, g) {
		return cmp.Or(subject, "all of its audience or scope, or everything"), true
	}
	for i := range len(subject) {
		if subject[i] == '/' && d.selectedAt(subject[:i+1], g) {
			return "everything below " + subject[:i+1], true
		}
	}
	return "", false
}
