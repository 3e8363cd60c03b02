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

// Open decodes what is sealed in a record, without the seal, and encodes it again.
func Open(plain []byte, typ string) (again []byte, keys []Key, err error) {
	s, err := unmarshal(plain, typ)
	if err != nil {
		return nil, nil, err
	}
	again, err = marshal(s)
	return again, s.keys(), err
}

// Unseal opens a record's value for a test.
func Unseal(config Config, value []byte) ([]byte, error) {
	return config.Shared.Seal.open(value[len(config.header()):], config.bound())
}

// Reseal is the opposite of Unseal.
func Reseal(config Config, plain []byte) []byte {
	return append([]byte(config.header()), config.Shared.Seal.seal(plain, config.bound())...)
}
