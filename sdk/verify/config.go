package verify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// Defaults and bounds of Config.
const (
	DefaultMaxStale   = 10 * time.Second
	MinMaxStale       = 2 * time.Second
	MaxMaxStale       = 60 * time.Second
	DefaultLeeway     = 5 * time.Second
	MaxLeeway         = 30 * time.Second
	DefaultMaxLife    = 15 * time.Minute // also the longest that may be configured
	DefaultMaxEntries = 1_000_000
	DefaultMaxRunning = 100_000
	DefaultMaxUsage   = 20_000

	maxAudienceBytes = 256
)

// Stale says what to do with a good token when the view of the feed is older than MaxStale.
type Stale int

const (
	// Refuse answers ErrStale: 503, try again.
	Refuse Stale = iota
	// Accept lets the token pass, and counts it in Status.AcceptedStale and Hooks.OnAcceptStale: an ended task's tokens
	// then live until they expire. It covers the feed's age alone: an outdated key set, a full
	// view and a token of a data set that is not known yet are refused all the same.
	Accept
)

// Binding says what ties a token to the caller.
type Binding int

const (
	// ByCertificate accepts only tokens that are bound to the certificate of the caller's own TLS
	// connection (RFC 8705 §3).
	ByCertificate Binding = iota
	// ByIdentity accepts a token if the caller's verified certificate has the SPIFFE ID that is its
	// client_id, which survives the rotation of certificates. A token that is bound to a
	// certificate must match that, too. With PeerOf, the server's tls.Config must have the CAs of one
	// trust domain alone: in a pool, each could name the workloads of the others. verifyspiffe.PeerOf
	// has no such limit.
	ByIdentity
	// Unbound accepts a token from whoever has it. It is for servers that cannot see the caller's
	// certificate.
	Unbound
)

// Config configures a Verifier. The zero values of all but Issuer, Audience and one of TLS and
// Files are the safe defaults.
type Config struct {
	// Issuer is the broker's issuer URL, byte for byte as in its metadata (RFC 8414 §3.3). Keys and
	// feed are found from it. It must be https, or http to a loopback address.
	Issuer string

	// Audience is the name that this resource server is registered under.
	Audience string

	// Resource is the URL of this resource server, which Metadata tells of (RFC 9728 §1.2): https, or
	// http to a loopback address, without query and fragment. Empty: there is no metadata.
	Resource string

	// Scopes are what Metadata says that there is to ask for. Optional.
	Scopes []string

	// MaxStale is how old the view of the feed may be; 10 s by default, 2 s to 60 s.
	MaxStale time.Duration
	OnStale  Stale
	Binding  Binding

	// Peer finds the caller's certificate for Require; PeerOf when nil. A server that verifies
	// certificates in a TLS callback, as go-spiffe's does, needs verifyspiffe.PeerOf for ByIdentity.
	Peer func(*http.Request) *Peer

	// TLS is the client side of the connections to the broker: the SVID to present, and how to
	// know the broker. It must pin the broker's SPIFFE ID: any other workload of the trust domain
	// could otherwise pose as it. verifyspiffe makes one. TLS 1.3 and no session resumption are
	// forced.
	TLS *tls.Config

	// Files is the alternative to TLS.
	Files *Files

	// Public is how to know the issuer's public listener (metadata and keys), if that has another
	// kind of certificate than the broker's SVID. Nil: as TLS.
	Public *tls.Config

	Leeway  time.Duration // on exp and iat, for clock skew; 5 s by default, at most 30 s
	MaxLife time.Duration // tokens that live longer are refused; 15 min by default and at most

	// MaxEntries bounds the denials that are held; 1 000 000 by default. More make the view stale:
	// none is ever forgotten before its time.
	MaxEntries int

	// MaxRunning bounds the requests that Require and Watch follow at the same time; 100 000 by
	// default. One more is refused with ErrBusy.
	MaxRunning int

	// CacheFile is where the last key set and view of the feed are written, for a start while the broker
	// is down; optional, and on Linux alone. Give each verifier one of its own, in a folder that only its
	// user can write: it decides which keys are believed.
	//
	// New asks the broker first, for a second. It uses the file only if the view in it is not older than
	// MaxStale by the clock that says more, the wall clock or the one since the machine was started, so
	// that nothing can have been missed; with OnStale: Accept, if its keys are not older than 10 minutes.
	// A file that is damaged, of another issuer or audience, of an earlier life of the machine, from the
	// future, or that others can write, is ignored with a line in the log. More than 10 000 denials are
	// not written.
	CacheFile string

	// NoUsage turns off the summaries that go to the broker every 30 s: of each grant, when its token
	// was checked, for which scopes, and how often that was refused. Its audit log then cannot say
	// which tokens and scopes were ever used.
	NoUsage bool

	// MaxUsage bounds the summaries of usage that wait for the broker; 20 000 by default. A grant has
	// one in each report. Checks that find no room are counted, and the number is reported.
	MaxUsage int

	Logger *slog.Logger     // slog.Default() when nil
	Now    func() time.Time // time.Now when nil
	Hooks  Hooks
}

// Hooks are called as things happen, for metrics. They must not block; OnApply and OnStale are
// never called concurrently with themselves.
type Hooks struct {
	// OnRefuse is called for each refusal, with one of the texts of this package's errors. The
	// grant is nil until the signature was found good.
	OnRefuse func(ctx context.Context, reason string, g *Grant)
	// OnCheck is called for each check of a token whose signature was good, with the scopes that the
	// requirements name, and the error if it was refused. The grant and the scopes are read-only.
	OnCheck func(ctx context.Context, g *Grant, scopes []string, err error)
	// OnApply is called for each denial, once tokens that it covers are refused.
	OnApply func(wire.FeedEntry)
	// OnStale is called when the view has become too old, with its age.
	OnStale func(age time.Duration)
	// OnAcceptStale is called for each token that passed because of OnStale: Accept.
	OnAcceptStale func(ctx context.Context, g *Grant)
}

// withDefaults returns c with its zero values replaced, or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	c.MaxStale = or(c.MaxStale, DefaultMaxStale)
	c.Leeway = or(c.Leeway, DefaultLeeway)
	c.MaxLife = or(c.MaxLife, DefaultMaxLife)
	c.MaxEntries = or(c.MaxEntries, DefaultMaxEntries)
	c.MaxRunning = or(c.MaxRunning, DefaultMaxRunning)
	c.MaxUsage = or(c.MaxUsage, DefaultMaxUsage)
	c.Logger = or(c.Logger, slog.Default())
	if c.Peer == nil {
		c.Peer = PeerOf
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, c.validate()
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

func (c Config) validate() error {
	if err := checkIssuer(c.Issuer); err != nil {
		return err
	}
	if err := c.checkResource(); err != nil {
		return err
	}
	if c.CacheFile != "" {
		if _, err := os.Stat(filepath.Dir(c.CacheFile)); err != nil {
			return fmt.Errorf("verify: Config.CacheFile: %w", err)
		}
	}
	switch {
	case c.Audience == "":
		return errors.New("verify: Config.Audience is empty; set it to the name that this resource server is registered under")
	case len(c.Audience) > maxAudienceBytes || strings.ContainsFunc(c.Audience, notNameRune):
		return fmt.Errorf("verify: Config.Audience is not a name: at most %d bytes of printable ASCII without space, quote and backslash are allowed", maxAudienceBytes)
	case c.MaxStale < MinMaxStale || c.MaxStale > MaxMaxStale:
		return fmt.Errorf("verify: Config.MaxStale is %s; it must be %s to %s", c.MaxStale, MinMaxStale, MaxMaxStale)
	case c.OnStale != Refuse && c.OnStale != Accept:
		return fmt.Errorf("verify: Config.OnStale is %d; use Refuse or Accept", c.OnStale)
	case c.Binding < ByCertificate || c.Binding > Unbound:
		return fmt.Errorf("verify: Config.Binding is %d; use ByCertificate, ByIdentity or Unbound", c.Binding)
	case c.Leeway < 0 || c.Leeway > MaxLeeway:
		return fmt.Errorf("verify: Config.Leeway is %s; it must be at most %s", c.Leeway, MaxLeeway)
	case c.MaxLife < 0 || c.MaxLife > DefaultMaxLife:
		return fmt.Errorf("verify: Config.MaxLife is %s; it must be at most %s", c.MaxLife, DefaultMaxLife)
	case c.MaxEntries < 0 || c.MaxRunning < 0 || c.MaxUsage < 0:
		return errors.New("verify: Config.MaxEntries, Config.MaxRunning and Config.MaxUsage must not be negative")
	case (c.TLS == nil) == (c.Files == nil):
		return errors.New("verify: set exactly one of Config.TLS and Config.Files; the broker lets only a workload that it knows read the feed")
	}
	return nil
}

// notNameRune is true outside RFC 6749's NQCHAR, of which names of audiences and scopes consist.
func notNameRune(r rune) bool {
	return r <= ' ' || r > '~' || r == '"' || r == '\\'
}

func checkIssuer(issuer string) error {
	if issuer == "" {
		return errors.New("verify: Config.Issuer is empty; set it to the broker's issuer URL")
	}
	u, err := url.Parse(issuer)
	if err != nil {
		return fmt.Errorf("verify: Config.Issuer is not a URL: %w", err)
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(issuer, "#") || u.User != nil {
		return fmt.Errorf("verify: Config.Issuer %q must have no user, query or fragment (RFC 8414 §2)", issuer)
	}
	if err := checkURL(u, true); err != nil {
		return fmt.Errorf("verify: Config.Issuer: %w", err)
	}
	return nil
}

func (c Config) checkResource() error {
	if slices.ContainsFunc(c.Scopes, func(s string) bool { return !isScope(s) }) {
		return errors.New("verify: Config.Scopes has something that is not a scope (RFC 6749 §3.3)")
	}
	if c.Resource == "" {
		return nil
	}
	u, err := url.Parse(c.Resource)
	if err != nil {
		return fmt.Errorf("verify: Config.Resource is not a URL: %w", err)
	}
	if u.RawQuery != "" || u.ForceQuery || strings.ContainsAny(c.Resource, "#\"\\") || u.User != nil {
		return fmt.Errorf("verify: Config.Resource %q must have no user, query, fragment, quote or backslash (RFC 9728 §1.2)", c.Resource)
	}
	if err := checkURL(u, true); err != nil {
		return fmt.Errorf("verify: Config.Resource: %w", err)
	}
	return nil
}

// checkURL allows https, and plain http to this machine where plain is true.
func checkURL(u *url.URL, plain bool) error {
	switch {
	case u.Host == "":
		return fmt.Errorf("%q names no host", u)
	case u.Scheme == "https", u.Scheme == "http" && plain && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q must begin with https:// (plain http is for loopback addresses alone)", u)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
