package api

import (
	"fmt"

	"github.com/errandhq/errand/sdk"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Environment variables of whoever has no SPIFFE identity: to end a task by its end key, or with an operator's
// certificate.
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
	config, err := e.trustBundle(id, "there is no identity")
	if err != nil {
		return nil, err
	}
	return byBundle(config, []string{at}, "the end key"), nil
}

// Bundle has the authorities that vouch for the broker, in PEM, as they are now.
func (i *Identity) Bundle(broker spiffeid.ID) ([]byte, error) {
	bundle, err := i.GetX509BundleForTrustDomain(broker.TrustDomain())
	if err != nil {
		return nil, fmt.Errorf("%w from %s: %w", ErrNoIdentity, i.From, err)
	}
	return bundle.Marshal()
}
