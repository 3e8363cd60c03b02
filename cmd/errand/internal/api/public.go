package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Environment variables of whoever has no identity, and ends a task by its end key.
const (
	EnvWorkload   = "ERRAND_WORKLOAD"    // whose the task is
	EnvEndKey     = "ERRAND_END_KEY"     // the secret itself
	EnvBundleFile = "ERRAND_BUNDLE_FILE" // PEM: the authorities that vouch for the broker
)

// maxBundle is the most that is read of a bundle, in bytes.
const maxBundle = 1 << 20

// HasIdentity reports whether one is named, wherever it leads.
func (e Environment) HasIdentity() bool {
	return e.get(sdk.EnvWorkloadSocket) != "" || e.get(sdk.EnvIdentityDir) != ""
}

// Workload is whose the task is.
func (e Environment) Workload() (string, error) {
	text := e.get(EnvWorkload)
	if _, err := spiffeid.FromString(text); err != nil {
		return "", fmt.Errorf("%w: whose the task is, is not known: %s is %q; set it to the SPIFFE ID of the workload that has begun it, or give the file that errand task begin --env-file has written", ErrConfig, EnvWorkload, text)
	}
	return text, nil
}

// EndKey is the end key, and "" for none.
func (e Environment) EndKey() string { return e.get(EnvEndKey) }

// OpenPublic makes a client of the public listener, which asks nobody for a certificate. It believes the one
// broker whose SPIFFE ID it was told, if the authorities in ERRAND_BUNDLE_FILE vouch for it. Error: ErrConfig.
func OpenPublic(e Environment) (*Client, error) {
	at, err := e.Issuer()
	if err != nil {
		return nil, err
	}
	id, err := e.BrokerID()
	if err != nil {
		return nil, err
	}
	file := e.get(EnvBundleFile)
	if file == "" {
		return nil, fmt.Errorf("%w: there is no identity, and nothing to know the broker by; set %s to a PEM file with the trust bundle of %s", ErrConfig, EnvBundleFile, id.TrustDomain())
	}
	pem, err := readBundle(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrConfig, EnvBundleFile, err)
	}
	config, err := verifyspiffe.TLSByBundle(pem, id.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s: %w", ErrConfig, EnvBundleFile, file, err)
	}
	nobody := &Identity{From: "the end key", Release: func() error { return nil }}
	return &Client{Identity: nobody, bases: []string{at}, http: &http.Client{
		Transport:     &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func readBundle(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if err == nil && len(pem) > maxBundle {
		err = errors.New("it is larger than a trust bundle can be")
	}
	return pem, err
}

// Bundle has the authorities that vouch for the broker, in PEM, as they are now.
func (i *Identity) Bundle(broker spiffeid.ID) ([]byte, error) {
	bundle, err := i.GetX509BundleForTrustDomain(broker.TrustDomain())
	if err != nil {
		return nil, fmt.Errorf("%w from %s: %w", ErrNoIdentity, i.From, err)
	}
	return bundle.Marshal()
}
