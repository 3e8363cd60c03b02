package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Environment variables beside those of package sdk.
const (
	EnvOperatorURL = "ERRAND_OPERATOR_URL"
	EnvIssuer      = "ERRAND_ISSUER"
)

// Bounds of the way to an identity. Who types a command does not wait for an agent that is still to be
// started.
const (
	IdentityTimeout = 5 * time.Second        // for the first SVID of the Workload API
	dirTimeout      = 500 * time.Millisecond // for files, which are there or not
	dialTimeout     = time.Second            // for the Workload API's socket
)

var (
	// ErrConfig: a variable of the environment, or the flag in its place, is missing or wrong.
	ErrConfig = errors.New("the environment is not as it must be")
	// ErrNoIdentity: there is no SVID to come with.
	ErrNoIdentity = errors.New("no identity")
)

// Environment is what a command is told by ERRAND_* and SPIFFE_ENDPOINT_SOCKET. It is read and checked
// here and nowhere else; each mistake says which variable to set, and how.
type Environment struct {
	Getenv func(string) string
	Flags  map[string]string // variable: value; over the environment where it is not empty
}

func (e Environment) get(name string) string {
	if value := e.Flags[name]; value != "" {
		return value
	}
	return e.Getenv(name)
}

// BrokerURLs are those of the workload listeners, in the order to try them in.
func (e Environment) BrokerURLs() ([]string, error) {
	urls := strings.FieldsFunc(e.get(sdk.EnvBrokerURL), func(r rune) bool { return r == ',' || r == ' ' })
	if len(urls) == 0 {
		return nil, fmt.Errorf("%w: the broker's URL is missing; set %s, as https://broker.example.org:8443; with errand dev,  eval \"$(errand dev env report)\"  sets all that is needed", ErrConfig, sdk.EnvBrokerURL)
	}
	if len(urls) > sdk.MaxBrokers {
		return nil, fmt.Errorf("%w: %s has %d URLs; at most %d are tried", ErrConfig, sdk.EnvBrokerURL, len(urls), sdk.MaxBrokers)
	}
	for _, text := range urls {
		if !isOrigin(text) {
			return nil, fmt.Errorf("%w: the broker's URL is %q; it %s; set %s, as https://broker.example.org:8443", ErrConfig, text, originForm, sdk.EnvBrokerURL)
		}
	}
	return urls, nil
}

// OperatorURL is that of the operator listener.
func (e Environment) OperatorURL() (string, error) {
	text := e.get(EnvOperatorURL)
	if text == "" {
		return "", fmt.Errorf("%w: the operator listener's URL is missing; give it with --operator-url or %s, as https://127.0.0.1:9443; with errand dev,  eval \"$(errand dev env operator)\"  sets all that is needed", ErrConfig, EnvOperatorURL)
	}
	if !isOrigin(text) {
		return "", fmt.Errorf("%w: the operator listener's URL is %q; it %s; give it with --operator-url or %s, as https://127.0.0.1:9443", ErrConfig, text, originForm, EnvOperatorURL)
	}
	return text, nil
}

// Issuer is the iss of the broker's tokens, and the URL of its public listener.
func (e Environment) Issuer() (string, error) {
	text := e.get(EnvIssuer)
	if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%w: the issuer is %q; it must begin with https:// and have a host; give it with --issuer or %s, as https://broker.example.org:8444", ErrConfig, text, EnvIssuer)
	}
	return text, nil
}

// BrokerID is the SPIFFE ID that the broker must prove.
func (e Environment) BrokerID() (spiffeid.ID, error) {
	text := e.get(sdk.EnvBrokerID)
	if text == "" {
		return spiffeid.ID{}, fmt.Errorf("%w: the SPIFFE ID that the broker must prove is missing; set %s, as spiffe://example.org/errand", ErrConfig, sdk.EnvBrokerID)
	}
	id, err := spiffeid.FromString(text)
	if err == nil && id.Path() == "" {
		err = errors.New("it has no path")
	}
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %s is %q, which is not the SPIFFE ID of a workload (%w); set it as spiffe://example.org/errand", ErrConfig, sdk.EnvBrokerID, text, err)
	}
	return id, nil
}

// IdentityDir is the folder of PEM files, if one is named.
func (e Environment) IdentityDir() string { return e.get(sdk.EnvIdentityDir) }

// originForm is what isOrigin wants, in words that read on from "it".
const originForm = "must begin with https://, have a host and perhaps a port, and nothing after it"

// isOrigin wants https, a host, and nothing behind it.
func isOrigin(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Host != "" && strings.TrimSuffix(text, "/") == "https://"+u.Host
}

// Identity is who a command is. Release it in the end.
type Identity struct {
	verifyspiffe.Source
	From    string // where it comes from, for people
	Release func() error
}

// Own is the SPIFFE ID and its certificate, which has not expired when this returns no error.
func (i *Identity) Own() (spiffeid.ID, *x509.Certificate, error) {
	svid, err := i.GetX509SVID()
	if err != nil {
		return spiffeid.ID{}, nil, fmt.Errorf("%w from %s: %w", ErrNoIdentity, i.From, err)
	}
	leaf := svid.Certificates[0]
	if time.Now().After(leaf.NotAfter) {
		err = fmt.Errorf("%w from %s: the SVID of %s has expired at %s; is its agent running?", ErrNoIdentity, i.From, svid.ID, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return svid.ID, leaf, err
}

// Identity opens the Workload API at SPIFFE_ENDPOINT_SOCKET, or else the folder ERRAND_IDENTITY_DIR, as
// package sdk does. Errors: ErrNoIdentity, ErrConfig.
func (e Environment) Identity(ctx context.Context) (*Identity, error) {
	socket, dir := e.get(sdk.EnvWorkloadSocket), e.get(sdk.EnvIdentityDir)
	if socket == "" && dir == "" {
		return nil, fmt.Errorf("%w: set %s to the Workload API's address, or %s to a folder with svid.pem, svid_key.pem and svid_bundle.pem",
			ErrNoIdentity, sdk.EnvWorkloadSocket, sdk.EnvIdentityDir)
	}
	var failed error
	if socket != "" {
		who, err := fromSocket(ctx, socket)
		if err == nil {
			return who, nil
		}
		failed = err
	}
	if dir != "" {
		who, err := fromDir(ctx, dir)
		if err == nil {
			return who, nil
		}
		failed = joinLines(failed, err)
	}
	return nil, failed
}

func joinLines(first, second error) error {
	if first == nil {
		return second
	}
	return fmt.Errorf("%w; %w", first, second)
}

func fromDir(ctx context.Context, dir string) (*Identity, error) {
	if _, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("%w in %s: %w; name a folder that this user can read", ErrNoIdentity, sdk.EnvIdentityDir, err)
	}
	return open(ctx, sdk.FromDir(dir), sdk.EnvIdentityDir, dirTimeout)
}

// fromSocket looks at the socket first: the library would try for as long as it may, and say only in
// the end what is wrong.
func fromSocket(ctx context.Context, addr string) (*Identity, error) {
	u, err := url.Parse(addr)
	network, at := "unix", ""
	switch {
	case err == nil && u.Scheme == "unix" && u.Host == "":
		at = u.Path + u.Opaque
	case err == nil && u.Scheme == "tcp" && u.Host != "":
		network, at = "tcp", u.Host
	default:
		return nil, fmt.Errorf("%w: %s is %q; give it as unix:///run/spire/agent.sock", ErrConfig, sdk.EnvWorkloadSocket, addr)
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, at)
	if err != nil {
		return nil, fmt.Errorf("%w from the Workload API at %s: %s (%w)", ErrNoIdentity, addr, explainDial(err), err)
	}
	_ = conn.Close() // it was opened to see whether that works
	who, err := open(ctx, sdk.FromWorkloadAPI(addr, ""), sdk.EnvWorkloadSocket, IdentityTimeout)
	if err != nil && strings.Contains(err.Error(), "PermissionDenied") {
		err = fmt.Errorf("%w. The agent runs and has no entry for this process: register it, or run as the user that is registered", err)
	}
	return who, err
}

func explainDial(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such socket: is the agent running, and is this its address?"
	case errors.Is(err, fs.ErrPermission):
		return "this user may not open the socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody answers at the socket: the agent has ended"
	}
	return "the socket cannot be opened"
}

func open(ctx context.Context, from sdk.IdentitySource, variable string, timeout time.Duration) (*Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	svids, _, release, err := from.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoIdentity, variable, err)
	}
	source, ok := svids.(verifyspiffe.Source) // both sources have the bundles, too
	if !ok {
		return nil, errors.Join(fmt.Errorf("%w in %s: it has no trust bundles", ErrNoIdentity, variable), release())
	}
	who := &Identity{Source: source, From: from.String(), Release: release}
	if _, _, err := who.Own(); err != nil {
		return nil, errors.Join(err, release())
	}
	return who, nil
}

// ProblemName is the last segment of a problem's type, as wire names it.
func ProblemName(p wire.Problem) string { return p.Type[strings.LastIndexByte(p.Type, '/')+1:] }
