package verify

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Peer is the caller's side of the TLS connection that a token came by.
type Peer struct {
	// Certificate is the caller's leaf certificate. That the caller has its key was proven by the
	// handshake.
	Certificate *x509.Certificate

	// Verified says that the certificate's chain led to a trusted root. ByIdentity needs that;
	// ByCertificate does not, since the broker verified the same certificate at issue.
	Verified bool
}

// PeerOf returns the caller of a request that came to this server over TLS, and nil if there was no
// client certificate. Headers that claim one are not looked at. Verified is true if the standard
// library verified the chain (tls.Config.ClientAuth of RequireAndVerifyClientCert).
func PeerOf(r *http.Request) *Peer {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return &Peer{Certificate: r.TLS.PeerCertificates[0], Verified: len(r.TLS.VerifiedChains) > 0}
}

// Verify checks a token that a caller presented, and that it meets the requirements. The peer is the
// caller, or nil when it showed no certificate. Errors match one of this package's; the grant is
// nil with every error.
//
// It reads memory only, but for a token that names a key never seen: then it waits for at most one
// fetch of the key set, no longer than ctx lasts.
func (v *Verifier) Verify(ctx context.Context, token string, peer *Peer, reqs ...Requirement) (*Grant, error) {
	grant, err := v.check(ctx, token, peer, reqs)
	if grant != nil {
		v.checked(ctx, grant, reqs, err)
	}
	if err != nil {
		v.hintAtBare(err, peer)
		v.refused(ctx, err, grant)
		return nil, err
	}
	if grant.stale {
		v.acceptedStale.Add(1)
		if hook := v.config.Hooks.OnAcceptStale; hook != nil {
			hook(ctx, grant)
		}
	}
	return grant, nil
}

// hintAtBare says once in the log what a server that asks for no certificates would look for in the tokens: nobody has
// one there, and all of them are refused.
func (v *Verifier) hintAtBare(err error, peer *Peer) {
	if peer == nil && errors.Is(err, ErrUnbound) {
		v.bare.Do(func() {
			v.config.Logger.Warn("verify: a good token was refused, since its caller showed no certificate; if that goes for all callers, serve TLS that asks for one, as tls.Config.ClientAuth with RequestClientCert does (said once)",
				"audience", v.config.Audience)
		})
	}
}

// check returns the grant with an error, too, once the signature is known to be good.
func (v *Verifier) check(ctx context.Context, token string, peer *Peer, reqs []Requirement) (*Grant, error) {
	header, err := parseHeader(token)
	if err != nil {
		return nil, err
	}
	key, err := v.keys.find(ctx, header.KeyID)
	if err != nil {
		return nil, err
	}
	payload, err := key.verify(token, header.Algorithm)
	if err != nil {
		return nil, err
	}
	grant, claims, err := parseClaims(payload)
	if err != nil {
		return nil, err
	}
	grant.key = header.KeyID
	now := v.config.Now()
	if err := v.inForce(claims, now); err != nil {
		return grant, err
	}
	if err := v.alive(grant, now); err != nil {
		return grant, err
	}
	if err := v.presented(grant, peer, now); err != nil {
		return grant, err
	}
	return grant, meets(ctx, grant, reqs)
}

// inForce checks who made the token, for whom, and when.
func (v *Verifier) inForce(c claims, now time.Time) error {
	leeway := v.config.Leeway
	expiry, issued := time.Unix(c.Expiry, 0), time.Unix(c.IssuedAt, 0)
	switch {
	case c.Issuer != v.config.Issuer:
		return ErrIssuer
	case c.Audience != v.config.Audience:
		return ErrAudience
	case !now.Before(expiry.Add(leeway)):
		return fmt.Errorf("%w %s ago", ErrExpired, now.Sub(expiry).Truncate(time.Second))
	case issued.After(now.Add(leeway)):
		return malformed("it was issued in the future: check the clocks")
	case c.NotBefore != nil && time.Unix(*c.NotBefore, 0).After(now.Add(leeway)):
		return malformed("it is not valid yet: check the clocks")
	case c.Expiry-c.IssuedAt > int64(v.config.MaxLife/time.Second):
		return malformed(fmt.Sprintf("it lives longer than %s", v.config.MaxLife))
	}
	return nil
}

// alive checks the grant against the feed, if what is known is fresh enough to say so.
func (v *Verifier) alive(g *Grant, now time.Time) error {
	if old := v.keys.age(now); old > maxKeyAge {
		return fmt.Errorf("%w: the key set was last fetched %s ago", ErrStale, old.Truncate(time.Second))
	}
	var err error
	g.stale, err = v.view.judge(g, now)
	return err
}

// presented checks that the caller is the one that the token was issued to.
func (v *Verifier) presented(g *Grant, peer *Peer, now time.Time) error {
	binding := v.config.Binding
	switch {
	case binding == Unbound:
		return nil
	case binding == ByCertificate && g.thumbprint == "":
		return fmt.Errorf("%w: it is bound to no certificate; register the audience with that binding", ErrUnbound)
	case peer == nil || peer.Certificate == nil:
		return fmt.Errorf("%w: the caller showed no certificate", ErrUnbound)
	case now.After(peer.Certificate.NotAfter.Add(v.config.Leeway)) || now.Before(peer.Certificate.NotBefore.Add(-v.config.Leeway)):
		// A connection outlives the certificate that it was made with.
		return fmt.Errorf("%w: the caller's certificate is not valid now", ErrUnbound)
	}
	if g.thumbprint != "" {
		sum := sha256.Sum256(peer.Certificate.Raw)
		if base64.RawURLEncoding.EncodeToString(sum[:]) != g.thumbprint {
			return fmt.Errorf("%w: it is bound to another certificate", ErrUnbound)
		}
		g.Bound = true
	}
	if binding != ByIdentity {
		return nil
	}
	leaf := peer.Certificate
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("%w: the caller's certificate is not that of a workload", ErrUnbound)
	}
	if !peer.Verified || len(leaf.URIs) != 1 || leaf.URIs[0].String() != g.Client {
		return fmt.Errorf("%w: the caller's verified identity is not its client_id", ErrUnbound)
	}
	return nil
}

// checked tells of a check of a token whose signature was good.
func (v *Verifier) checked(ctx context.Context, g *Grant, reqs []Requirement, err error) {
	hook := v.config.Hooks.OnCheck
	if hook == nil && v.usage == nil {
		return
	}
	scopes := scopesOf(reqs)
	if hook != nil {
		hook(ctx, g, scopes, err)
	}
	if v.usage != nil && g.Audience == v.config.Audience && !errors.Is(err, ErrIssuer) {
		v.usage.note(g, scopes, err == nil, v.config.Now())
	}
}

func (v *Verifier) refused(ctx context.Context, err error, g *Grant) {
	if hook := v.config.Hooks.OnRefuse; hook != nil {
		hook(ctx, string(reason(err)), g)
	}
}
