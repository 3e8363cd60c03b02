package keys_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/errandhq/errand/keys"
)

// secret has every kind of byte that could be taken for something else, and ends like a line.
var secret = append(bytes.Repeat([]byte{0, 0xff, ' ', '0'}, 7), 'a', '\r', 0x80, '\n')

const derivedVector = "e25db61c5e787c88dc3d49faccffa3e5db1f3b9c6ec9e6512ff11b984e9d8454"

func keyFile(t *testing.T, content []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seal.key")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadSeal(t *testing.T) {
	want, err := keys.NewSeal(secret)
	if err != nil {
		t.Fatal(err)
	}
	encoded := base64.StdEncoding.EncodeToString(secret)
	for name, content := range map[string]string{
		"raw": string(secret), "raw and a newline": string(secret) + "\n", "raw and CRLF": string(secret) + "\r\n",
		"hex": hex.EncodeToString(secret), "hex in capitals": strings.ToUpper(hex.EncodeToString(secret)),
		"hex and a newline": hex.EncodeToString(secret) + "\n", "hex and CRLF": hex.EncodeToString(secret) + "\r\n",
		"base64": encoded, "base64 and a newline": encoded + "\n",
	} {
		seal, err := keys.LoadSeal(keyFile(t, []byte(content), 0o600))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(seal.Derive("x"), want.Derive("x")) {
			t.Errorf("%s: another key", name)
		}
	}
	for name, content := range map[string]string{
		"empty": "", "a newline": "\n", "31 bytes": string(secret[1:]), "33 bytes": string(secret) + "x",
		"two newlines": string(secret) + "\n\n", "16 bytes in hex": strings.Repeat("0a", 16), "63 hex digits": hex.EncodeToString(secret)[1:],
		"65 hex digits": hex.EncodeToString(secret) + "0", "hex with a space": " " + hex.EncodeToString(secret)[1:],
		"base64 for URLs": base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 32)), "base64 without padding": encoded[:43],
		"base64 of 33 bytes": base64.StdEncoding.EncodeToString(append([]byte("x"), secret...)), "long": strings.Repeat("x", 1<<20),
	} {
		if _, err := keys.LoadSeal(keyFile(t, []byte(content), 0o600)); err == nil || !strings.Contains(err.Error(), "openssl rand -out") {
			t.Errorf("%s: %v; want an error that says how to make a key", name, err)
		} else if len(content) > 8 && strings.Contains(err.Error(), content) {
			t.Errorf("%s: the error shows the file", name)
		}
	}
}

func TestLoadSealMode(t *testing.T) {
	for mode, good := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o440: true, 0o640: true, 0o644: false, 0o604: false, 0o602: false, 0o620: false, 0o601: false} {
		path := keyFile(t, secret, mode)
		_, err := keys.LoadSeal(path)
		if good != (err == nil) || !good && !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if _, err := keys.LoadSeal(t.TempDir()); err == nil {
		t.Error("a folder is a key")
	}
	if _, err := keys.LoadSeal(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "copy that of the other replicas, or make the first one with: (umask 077; openssl") {
		t.Errorf("no file: %v", err)
	}
}

func TestLoadSealCredential(t *testing.T) {
	path := keyFile(t, secret, 0o400)
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
	if _, err := keys.LoadSeal("credential:seal.key"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "short"), secret[1:], 0o400); err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string]string{"none": "there is no key file", "short": "is not a key"} {
		_, err := keys.LoadSeal("credential:" + name)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "LoadCredential="+name+":FILE") || !strings.Contains(err.Error(), "openssl rand -out FILE") {
			t.Errorf("credential %q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "../seal.key", "/seal.key", "a/b"} {
		if _, err := keys.LoadSeal("credential:" + name); err == nil || !strings.Contains(err.Error(), "LoadCredential") {
			t.Errorf("credential %q: %v", name, err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := keys.LoadSeal("credential:seal.key"); err == nil || !strings.Contains(err.Error(), "LoadCredential=seal.key") {
		t.Errorf("outside of systemd: %v", err)
	}
}

func TestNewSeal(t *testing.T) {
	for _, n := range []int{0, 31, 33} {
		if _, err := keys.NewSeal(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes", n)
		}
	}
	given := bytes.Clone(secret)
	seal, err := keys.NewSeal(given)
	if err != nil {
		t.Fatal(err)
	}
	before := seal.Derive("end key")
	clear(given)
	if !bytes.Equal(seal.Derive("end key"), before) {
		t.Error("the seal changes with the caller's memory")
	}
	if bytes.Equal(before, seal.Derive("another")) || len(before) != 32 {
		t.Error("keys for two purposes are the same")
	}
	// RFC 5869 with the key as input, no salt, and "errand end key" as info; computed elsewhere.
	fixed, err := keys.NewSeal(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(fixed.Derive("end key")); got != derivedVector {
		t.Errorf("derived %s; want %s", got, derivedVector)
	}
}

// TestASealIsNeverShown in any way of printing it or what holds it.
func TestASealIsNeverShown(t *testing.T) {
	seal, err := keys.NewSeal(secret)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, v := range []any{
		seal, *seal, []keys.Seal{*seal}, map[string]keys.Seal{"a": *seal}, struct{ S *keys.Seal }{seal}, struct{ s *keys.Seal }{seal},
		struct{ s keys.Seal }{*seal}, &struct{ s keys.Seal }{*seal}, keys.Config{Shared: &keys.Shared{Seal: seal}}, keys.Shared{Seal: seal},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%p", "%t"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("seal", "value", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("seal", "value", v)
		if encoded, err := json.Marshal(v); err == nil { // a Config has a function
			out.Write(encoded)
		}
	}
	for _, spelling := range []string{
		string(secret[:16]), hex.EncodeToString(secret[:8]), strings.ToUpper(hex.EncodeToString(secret[:8])),
		base64.StdEncoding.EncodeToString(secret[:9]), strings.Trim(fmt.Sprint(secret[:8]), "[]"),
		strings.Trim(strings.TrimPrefix(fmt.Sprintf("%#v", secret[:8]), "[]byte"), "{}"),
		strings.Trim(fmt.Sprintf("%o", secret[:8]), "[]"), strings.Trim(fmt.Sprintf("%b", secret[:8]), "[]"),
	} {
		if strings.Contains(out.String(), spelling) {
			t.Errorf("the secret is shown as %q", spelling)
		}
	}
	for _, verb := range []string{"%v", "%x", "%d", "%#v"} {
		if got := fmt.Sprintf(verb, seal); got != "[seal redacted]" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}
