package keys

import "crypto"

// NewWith is New with another source of private keys.
func NewWith(config Config, generate func() (crypto.Signer, error)) (*Ring, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	return start(config, generate)
}

// Thumbprint names a public key as a ring does.
func Thumbprint(public crypto.PublicKey) (string, error) { return thumbprint(public) }
