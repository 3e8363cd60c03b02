package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// SealBytes is the length of a Seal's key.
const SealBytes = 32

// CredentialPrefix makes a path of LoadSeal the name of a systemd credential.
const CredentialPrefix = "credential:"

// Seal is the secret that replicas share, from a file that each of them has: whatever the store keeps
// for them is sealed under it, so that the store's operators and backups have no signing key. It
// prints itself redacted everywhere. Get one with LoadSeal; the zero value is not usable.
type Seal struct {
	secret func() [SealBytes]byte // a function, so that not even a print of what holds a Seal shows it
}

// NewSeal makes a Seal of SealBytes bytes that must be as good as random.
func NewSeal(secret []byte) (*Seal, error) {
	if len(secret) != SealBytes {
		return nil, fmt.Errorf("keys: a sealing key has %d bytes; this one has %d", SealBytes, len(secret))
	}
	own := [SealBytes]byte(secret)
	return &Seal{secret: func() [SealBytes]byte { return own }}, nil
}

// LoadSeal reads a key file: exactly 32 raw bytes, 64 hex digits, or 44 characters of base64, and
// perhaps a newline. "credential:NAME" is the file NAME in the directory of systemd's credentials
// ($CREDENTIALS_DIRECTORY, see LoadCredential= in systemd.exec(5)). The file may be read by its owner
// and group, and by nobody else.
func LoadSeal(path string) (*Seal, error) {
	howToGet := howToGet(path)
	path, err := sealPath(path)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("keys: there is no key file %s; %s", path, howToGet)
	}
	if err != nil {
		return nil, fmt.Errorf("keys: the key file: %w", err)
	}
	defer file.Close()
	if err := checkMode(file); err != nil {
		return nil, err
	}
	const longest = 2*SealBytes + 2 // the hex digits, and a newline of two characters
	content, err := io.ReadAll(io.LimitReader(file, longest+1))
	if err != nil {
		return nil, fmt.Errorf("keys: the key file: %w", err)
	}
	secret, ok := parseSeal(content)
	if !ok {
		return nil, fmt.Errorf("keys: the key file %s is not a key: it must be exactly %d bytes, %d hex digits, or %d characters of base64; %s",
			path, SealBytes, 2*SealBytes, base64.StdEncoding.EncodedLen(SealBytes), howToGet)
	}
	return NewSeal(secret)
}

// howToGet says where the file of a path is to come from. A new key does not open what is sealed already.
func howToGet(path string) string {
	const get = "copy that of the other replicas, or make the first one with: (umask 077; openssl rand -out %s %d)"
	name, ok := strings.CutPrefix(path, CredentialPrefix)
	if !ok {
		return fmt.Sprintf(get, path, SealBytes)
	}
	return fmt.Sprintf("the systemd unit must have LoadCredential=%s:FILE, with the path of the key file; "+get, name, "FILE", SealBytes)
}

func sealPath(path string) (string, error) {
	name, ok := strings.CutPrefix(path, CredentialPrefix)
	if !ok {
		return path, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	switch {
	case name == "" || name != filepath.Base(name) || name == "." || name == "..":
		return "", fmt.Errorf("keys: %q does not name a systemd credential; write %sNAME, with the NAME of LoadCredential=NAME:FILE", path, CredentialPrefix)
	case dir == "":
		return "", fmt.Errorf("keys: %s needs $CREDENTIALS_DIRECTORY, which is not set; start this as a systemd unit with LoadCredential=%s:FILE, or name a file", path, name)
	}
	return filepath.Join(dir, name), nil
}

// checkMode refuses a file that anybody can read. Its group may: that is how systemd's credentials
// and Kubernetes' secrets reach a service that is not root.
func checkMode(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("keys: the key file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("keys: the key file %s is not a file", file.Name())
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 && runtime.GOOS != "windows" {
		return fmt.Errorf("keys: the key file %s is open to others (mode %04o); close it with: chmod 600 %s, and make a new key if somebody may have read it",
			file.Name(), mode, file.Name())
	}
	return nil
}

// parseSeal takes the three forms apart by their lengths, which are different with and without a
// newline.
func parseSeal(content []byte) ([]byte, bool) {
	for _, newline := range []string{"\n", "\r"} {
		if len(content) != SealBytes {
			content = []byte(strings.TrimSuffix(string(content), newline))
		}
	}
	switch len(content) {
	case SealBytes:
		_, err := hex.DecodeString(string(content))
		return content, err != nil // hex digits would be half a key, written out
	case 2 * SealBytes:
		secret, err := hex.DecodeString(string(content))
		return secret, err == nil
	case base64.StdEncoding.EncodedLen(SealBytes):
		secret, err := base64.StdEncoding.Strict().DecodeString(string(content))
		return secret, err == nil && len(secret) == SealBytes
	}
	return nil, false
}

// Derive returns a key of 32 bytes for another purpose, which the label names (HKDF, RFC 5869, with
// SHA-256). Replicas with the same key file derive the same.
func (s Seal) Derive(label string) []byte {
	secret := s.secret()
	derived, err := hkdf.Key(sha256.New, secret[:], nil, "errand "+label, SealBytes)
	if err != nil {
		panic("keys: 32 bytes can be derived from any key: " + err.Error())
	}
	return derived
}

// fingerprint tells seals apart and says nothing else about them.
func (s Seal) fingerprint() string { return hex.EncodeToString(s.Derive("fingerprint")[:8]) }

// seal encrypts with AES-256-GCM (NIST SP 800-38D) and a random nonce, which comes first. What is
// sealed under one key is written a few times a day, so that nonces do not repeat.
func (s Seal) seal(plain, bound []byte) []byte {
	aead := s.aead()
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	rand.Read(nonce) // never fails
	return aead.Seal(nonce, nonce, plain, bound)
}

var errOpen = errors.New("it was not sealed")

func (s Seal) open(sealed, bound []byte) ([]byte, error) {
	aead := s.aead()
	if len(sealed) < aead.NonceSize()+aead.Overhead() {
		return nil, errOpen
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], bound)
	if err != nil {
		return nil, errOpen
	}
	return plain, nil
}

func (s Seal) aead() cipher.AEAD {
	block, err := aes.NewCipher(s.Derive("key record"))
	if err != nil {
		panic("keys: 32 bytes are a key of AES-256: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("keys: AES has GCM: " + err.Error())
	}
	return aead
}

const redactedSeal = "[seal redacted]"

// Format hides the secret from every verb of fmt.
func (s Seal) Format(f fmt.State, _ rune) { io.WriteString(f, redactedSeal) }

// String hides the secret.
func (s Seal) String() string { return redactedSeal }

// GoString hides the secret.
func (s Seal) GoString() string { return redactedSeal }

// LogValue hides the secret from log/slog.
func (s Seal) LogValue() slog.Value { return slog.StringValue(redactedSeal) }

// MarshalText hides the secret from JSON, YAML and the like.
func (s Seal) MarshalText() ([]byte, error) { return []byte(redactedSeal), nil }
