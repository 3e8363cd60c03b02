// Package operator is the client of the broker's operator listener, for the commands that need one.
// Open a Client with Open, and call Get and Post.
//
// It speaks mutual TLS with the caller's SVID, to the one broker whose SPIFFE ID it was told, and
// decodes the broker's refusals into *Refusal.
package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
)

// EnvURL names the operator listener where Config does not.
const EnvURL = "ERRAND_OPERATOR_URL"

// Bounds of a call.
const (
	IdentityTimeout = 10 * time.Second // for the first SVID
	CallTimeout     = 15 * time.Second
	MaxAnswer       = 1 << 20 // bytes
)

var (
	// ErrConfig: the URL or the broker's SPIFFE ID is missing or wrong.
	ErrConfig = errors.New("operator listener not known")
	// ErrNoIdentity: there is no SVID to come with.
	ErrNoIdentity = errors.New("no identity")
	// ErrUnreachable: there is no answer, or none from the broker that was named.
	ErrUnreachable = errors.New("no answer from the broker")
)

// Refusal is the broker's own answer that it will not.
type Refusal struct {
	Problem wire.Problem
	JSON    []byte // the problem document as it came
}

// Name is the last segment of the problem's type.
func (r *Refusal) Name() string { return r.Problem.Type[strings.LastIndexByte(r.Problem.Type, '/')+1:] }

func (r *Refusal) Error() string {
	return fmt.Sprintf("the broker refused: %s\n  %s\n  See %s", r.Problem.Title, r.Problem.Detail, r.Problem.Type)
}

// Config says whom to call; what is empty comes from the environment.
type Config struct {
	URL      string // EnvURL
	BrokerID string // sdk.EnvBrokerID
	Getenv   func(string) string
}

// Client calls one broker. Close it in the end.
type Client struct {
	base    string
	http    *http.Client
	release func() error
}

// Open takes the caller's identity from the Workload API at SPIFFE_ENDPOINT_SOCKET, or from the folder
// ERRAND_IDENTITY_DIR. It calls nobody yet. Errors: ErrConfig, ErrNoIdentity.
func Open(ctx context.Context, c Config) (*Client, error) {
	if c.URL == "" {
		c.URL = c.Getenv(EnvURL)
	}
	if c.BrokerID == "" {
		c.BrokerID = c.Getenv(sdk.EnvBrokerID)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || c.URL != "https://"+u.Host {
		return nil, fmt.Errorf("%w: its URL is %q; give it with --operator-url or %s, as https://127.0.0.1:9443", ErrConfig, c.URL, EnvURL)
	}
	if c.BrokerID == "" {
		return nil, fmt.Errorf("%w: the SPIFFE ID that the broker must prove is missing; set %s, as spiffe://example.org/errand", ErrConfig, sdk.EnvBrokerID)
	}
	source, release, err := identity(ctx, c.Getenv)
	if err != nil {
		return nil, err
	}
	config, err := verifyspiffe.TLS(source, c.BrokerID)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s is %q: %w", ErrConfig, sdk.EnvBrokerID, c.BrokerID, err), release())
	}
	return &Client{base: c.URL, release: release, http: &http.Client{
		Timeout:   CallTimeout,
		Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true},
		// A redirect would be another place than the one that was named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// identity opens the source that the environment names.
func identity(ctx context.Context, getenv func(string) string) (verifyspiffe.Source, func() error, error) {
	socket, dir := getenv(sdk.EnvWorkloadSocket), getenv(sdk.EnvIdentityDir)
	var from sdk.IdentitySource
	switch {
	case socket != "":
		from = sdk.FromWorkloadAPI(socket, "")
	case dir != "":
		// The source waits for its files; whoever types a command does not.
		if _, err := os.Stat(filepath.Join(dir, "svid.pem")); err != nil {
			return nil, nil, fmt.Errorf("%w in %s: %w", ErrNoIdentity, sdk.EnvIdentityDir, err)
		}
		from = sdk.FromDir(dir)
	default:
		return nil, nil, fmt.Errorf("%w: set %s to the Workload API's address, or %s to a folder with svid.pem, svid_key.pem and svid_bundle.pem",
			ErrNoIdentity, sdk.EnvWorkloadSocket, sdk.EnvIdentityDir)
	}
	ctx, cancel := context.WithTimeout(ctx, IdentityTimeout)
	defer cancel()
	svids, _, release, err := from.Open(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%w from %s: %w", ErrNoIdentity, from, err)
	}
	// Both sources have the bundles too.
	source, ok := svids.(verifyspiffe.Source)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("%w from %s: it has no bundles", ErrNoIdentity, from), release())
	}
	return source, release, nil
}

// Close ends the connections and lets go of the identity.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return c.release()
}

// Get reads a resource, and returns the answer as it came. Errors: *Refusal, ErrUnreachable.
func (c *Client) Get(ctx context.Context, path string, into any) ([]byte, error) {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

// Post sends a command. Errors are those of Get.
func (c *Client) Post(ctx context.Context, path string, body, into any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return c.call(ctx, http.MethodPost, path, text, into)
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", wire.TypeJSON)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, MaxAnswer+1))
	if err != nil || len(text) > MaxAnswer {
		return nil, fmt.Errorf("%w: its answer broke off, or has more than %d bytes: %v", ErrUnreachable, MaxAnswer, err)
	}
	if response.StatusCode/100 != 2 {
		return nil, refusal(response, text)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return nil, fmt.Errorf("%w: what answers at %s is not an operator listener: %w", ErrUnreachable, c.base, err)
	}
	return text, nil
}

func refusal(response *http.Response, text []byte) error {
	r := &Refusal{JSON: text}
	if response.Header.Get("Content-Type") != wire.TypeProblem || json.Unmarshal(text, &r.Problem) != nil || r.Problem.Type == "" {
		return fmt.Errorf("%w: what answers is not an operator listener: %s", ErrUnreachable, response.Status)
	}
	return r
}
