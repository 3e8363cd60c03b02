package verify

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	dialTimeout     = 3 * time.Second
	fetchTimeout    = 5 * time.Second  // of metadata, keys and the head of a stream
	snapshotTimeout = 30 * time.Second // a snapshot can be large
	maxMetadataAge  = 10 * time.Minute
	maxRedirects    = 3

	maxMetadataBody = 64 << 10
	maxPositionBody = 4 << 10
	maxProblemBody  = 4 << 10
	maxHeaderBytes  = 64 << 10
	bytesPerEntry   = 512 // of a snapshot, at most, on average
)

// issuer speaks HTTP to the broker: it knows addresses and limits, and keeps no knowledge of
// tokens.
type issuer struct {
	name     string // the issuer URL
	audience string
	entries  int // the most that a snapshot may have
	now      func() time.Time
	public   *client // metadata and keys
	private  *client // the feed
}

// client is an http.Client that knows whom it trusts.
type client struct {
	*http.Client
	tls *tls.Config
}

// errNotFound: a verifier that started from its cache file does not know where the broker is.
var errNotFound = errors.New("the issuer's metadata has not been read yet")

// endpoints is what the metadata says.
type endpoints struct {
	keys, feed, snapshot, position, usage, acks *url.URL
	read                                        time.Time
}

func newIssuer(c Config, private, public *tls.Config) *issuer {
	return &issuer{
		name: c.Issuer, audience: c.Audience, entries: c.MaxEntries, now: c.Now,
		public: newClient(public), private: newClient(private),
	}
}

// newClient makes a client with a bound on everything but how long a stream is. It speaks HTTP/1.1:
// a stream that stands still then holds up nothing else.
func newClient(config *tls.Config) *client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &client{tls: config, Client: &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: fetchTimeout}).DialContext,
			TLSClientConfig:        config,
			TLSHandshakeTimeout:    dialTimeout,
			ResponseHeaderTimeout:  fetchTimeout,
			MaxResponseHeaderBytes: maxHeaderBytes,
			MaxIdleConnsPerHost:    3, // a proof of freshness, an acknowledgement and a report: none waits for another
			IdleConnTimeout:        time.Minute,
			DisableCompression:     true, // so that a small body is a small body
			Protocols:              protocols,
		},
	}}
}

// checkRedirect stays with the authority that was asked: another one would not be the issuer.
func checkRedirect(r *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects || r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
		return fmt.Errorf("the redirect to %s is not followed: it leaves %s, or there were too many", r.URL.Redacted(), first.Host)
	}
	return nil
}

func (i *issuer) close() {
	i.public.CloseIdleConnections()
	i.private.CloseIdleConnections()
}

// discover reads the metadata, whose path is inserted between the issuer's host and path (RFC 8414
// §3.1).
func (i *issuer) discover(ctx context.Context, now time.Time) (*endpoints, error) {
	u, err := url.Parse(i.name)
	if err != nil {
		return nil, err
	}
	plain := u.Scheme == "http"
	u.Path = wire.PathMetadata + strings.TrimSuffix(u.Path, "/")
	u.RawPath = ""
	body, _, err := i.get(ctx, i.public, u, fetchTimeout, maxMetadataBody)
	if err != nil {
		return nil, err
	}
	var m wire.Metadata
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("the metadata at %s is not a JSON object of RFC 8414", u)
	}
	if m.Issuer != i.name {
		return nil, fmt.Errorf("the metadata at %s is of issuer %q; Config.Issuer must be the same, byte for byte", u, m.Issuer)
	}
	keys, err := parseEndpoint("jwks_uri", m.JWKSURI, plain)
	if err != nil {
		return nil, err
	}
	// The broker knows who reads the feed by a client certificate, so that is never plain.
	feed, err := parseEndpoint("errand_feed", m.Feed, false)
	if err != nil {
		return nil, err
	}
	return &endpoints{keys: keys, feed: feed, snapshot: feed.JoinPath("snapshot"), position: feed.JoinPath("position"), usage: feed.JoinPath("usage"), acks: feed.JoinPath("acks"), read: now}, nil
}

func parseEndpoint(member, text string, plain bool) (*url.URL, error) {
	u, err := url.Parse(text)
	if err == nil {
		err = checkURL(u, plain)
	}
	if err != nil {
		return nil, fmt.Errorf("the metadata's %s: %w", member, err)
	}
	return u, nil
}

// fetchKeys returns the key set, what it was read from, and when to fetch it again.
func (i *issuer) fetchKeys(ctx context.Context, e *endpoints) (map[string]*key, []byte, time.Duration, error) {
	body, head, err := i.get(ctx, i.public, e.keys, fetchTimeout, maxKeyBody)
	if err != nil {
		return nil, nil, 0, err
	}
	keys, err := parseKeys(body)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("%s: %w", e.keys, err)
	}
	return keys, body, max(jitter(min(maxAge(head), maxKeyInterval)), minKeyInterval), nil
}

// maxAge is the max-age of Cache-Control (RFC 9111 §5.2.2.1), or maxKeyInterval.
func maxAge(h http.Header) time.Duration {
	for directive := range strings.SplitSeq(h.Get("Cache-Control"), ",") {
		text, ok := strings.CutPrefix(strings.TrimSpace(directive), "max-age=")
		if seconds, err := strconv.ParseUint(text, 10, 31); ok && err == nil {
			return time.Duration(seconds) * time.Second
		}
	}
	return maxKeyInterval
}

// fetchSnapshot returns everything that is denied for the audience, and the position of that.
func (i *issuer) fetchSnapshot(ctx context.Context, e *endpoints) (wire.Position, []wire.FeedEntry, error) {
	limit := int64(i.entries)*bytesPerEntry + maxPositionBody
	body, _, err := i.get(ctx, i.private, i.ofAudience(e.snapshot), snapshotTimeout, limit)
	if err != nil {
		return wire.Position{}, nil, err
	}
	snapshot, err := parseFeedEvent(body)
	if err != nil {
		return wire.Position{}, nil, err
	}
	p, err := parsePosition(snapshot.Position)
	return p, snapshot.Entries, err
}

// parseFeedEvent reads the data of an event, or a snapshot.
func parseFeedEvent(data []byte) (wire.FeedEvent, error) {
	var e wire.FeedEvent
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("not a JSON object with a position and entries: %w", err)
	}
	return e, nil
}

func parsePosition(text string) (wire.Position, error) {
	p, err := wire.ParsePosition(text)
	if err == nil && p.Epoch == 0 {
		err = fmt.Errorf("%w: the epoch is 0", wire.ErrPosition)
	}
	return p, err
}

// fetchPosition asks any replica how far the feed is. The proof is as of when the question was
// sent, less the age of the replica's own knowledge.
func (i *issuer) fetchPosition(ctx context.Context, e *endpoints, nonce string, now func() time.Time) (proof, error) {
	u := *e.position
	u.RawQuery = url.Values{"nonce": {nonce}}.Encode()
	sent := now()
	body, _, err := i.get(ctx, i.private, &u, fetchTimeout, maxPositionBody)
	if err != nil {
		return proof{}, err
	}
	var answer wire.FeedPosition
	if err := json.Unmarshal(body, &answer); err != nil {
		return proof{}, errors.New("the answer to a nonce is not a JSON object")
	}
	if answer.Nonce != nonce || answer.AgeMS < 0 {
		return proof{}, errors.New("the answer to a nonce has another nonce, or comes from the future: is there a cache in between?")
	}
	p, err := parsePosition(answer.Position)
	if err != nil {
		return proof{}, err
	}
	old := time.Duration(min(answer.AgeMS, int64(time.Hour/time.Millisecond))) * time.Millisecond
	return proof{asOf: sent.Add(-old), position: p}, nil
}

// feedStream is an open response of the feed.
type feedStream struct {
	io.ReadCloser
	trusted func() error // whether its connection would still be made
}

// openStream begins to follow the feed after a position. The caller closes it.
func (i *issuer) openStream(ctx context.Context, e *endpoints, after wire.Position) (*feedStream, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, i.ofAudience(e.feed).String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", wire.TypeEvents)
	request.Header.Set(wire.HeaderLastEventID, after.String())
	response, err := i.private.Do(request)
	if err != nil {
		return nil, err
	}
	media, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	switch {
	case response.StatusCode == http.StatusOK && media == wire.TypeEvents:
		return &feedStream{response.Body, func() error { return trusted(i.private.tls, response.TLS, i.now()) }}, nil
	case response.StatusCode == http.StatusGone:
		err = fmt.Errorf("%w: the broker does not know position %s", errResync, after)
	default:
		err = newStatusError(response)
	}
	_ = response.Body.Close()
	i.private.CloseIdleConnections()
	return nil, err
}

func (i *issuer) ofAudience(u *url.URL) *url.URL {
	with := *u
	with.RawQuery = url.Values{"aud": {i.audience}}.Encode()
	return &with
}

// get returns a body of at most limit bytes.
func (i *issuer) get(ctx context.Context, client *client, u *url.URL, timeout time.Duration, limit int64) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Accept", wire.TypeJSON+", "+wire.TypeJWKS)
	request.Header.Set("Cache-Control", "no-cache")
	return i.exchange(client, request, http.StatusOK, limit)
}

// sendUsage hands over one report.
func (i *issuer) sendUsage(ctx context.Context, e *endpoints, body []byte) error {
	if e == nil {
		return errNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	return i.post(ctx, e.usage, body)
}

// post sends what has no answer but that it was taken.
func (i *issuer) post(ctx context.Context, to *url.URL, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, i.ofAudience(to).String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", wire.TypeJSON)
	_, _, err = i.exchange(i.private, request, http.StatusNoContent, maxProblemBody)
	return err
}

// exchange returns a body of at most limit bytes. After any other answer than the one that is wanted
// it makes the client connect anew, since the broker judges a connection by the certificate that
// opened it.
func (i *issuer) exchange(client *client, request *http.Request, want int, limit int64) ([]byte, http.Header, error) {
	what := request.Method + " " + request.URL.Redacted()
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if err := trusted(client.tls, response.TLS, i.now()); err != nil {
		response.Body.Close()
		client.CloseIdleConnections()
		return nil, nil, fmt.Errorf("%s: the connection is not trusted any more: %w", what, err)
	}
	if response.StatusCode != want {
		client.CloseIdleConnections()
		return nil, nil, newStatusError(response)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	if int64(len(body)) > limit {
		return nil, nil, fmt.Errorf("%s: the body has more than %d bytes", what, limit)
	}
	return body, response.Header, nil
}

// statusError is an answer that was not wanted, with what the broker said if that is a problem (RFC
// 9457).
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func newStatusError(response *http.Response) error {
	var problem wire.Problem
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxProblemBody))
	media, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	detail := ""
	if media == wire.TypeProblem && json.Unmarshal(body, &problem) == nil {
		detail = fmt.Sprintf(": %q", problem.Title+": "+problem.Detail)
	}
	r := response.Request
	return &statusError{response.StatusCode, fmt.Sprintf("%s %s: %d %s%s", r.Method, r.URL.Redacted(), response.StatusCode, http.StatusText(response.StatusCode), detail)}
}
