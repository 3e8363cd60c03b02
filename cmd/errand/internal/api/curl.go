package api

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/errandhq/errand/sdk/wire"
)

// Curl is the request as a command line for a POSIX shell. It names the files of the identity in
// ERRAND_IDENTITY_DIR, or in this folder where there is none, or those of the operator's certificate. Errors: ErrConfig.
func (e Environment) Curl(r Request, at Listener) (string, error) {
	bases, err := at.urls(e)
	if err != nil {
		return "", err
	}
	dir := e.IdentityDir()
	words := []string{"curl", "--fail-with-body"}
	if r.Method != http.MethodGet {
		words = append(words, "--request", r.Method)
	}
	files := []string{filepath.Join(dir, "svid_bundle.pem"), filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem")}
	if at == Operator && e.HasCertificate() {
		files = []string{e.get(EnvBundleFile), e.get(EnvOperatorCert), e.get(EnvOperatorKey)}
	}
	for i, flag := range []string{"--cacert", "--cert", "--key"} {
		words = append(words, flag, Quote(files[i]))
	}
	if r.Stream {
		words = append(words, "--no-buffer", "--header", Quote("Accept: "+wire.TypeEvents))
	}
	if r.Key != "" {
		words = append(words, "--header", Quote(wire.HeaderIdempotencyKey+": "+r.Key))
	}
	if r.Body != nil {
		body, err := json.Marshal(r.Body)
		if err != nil {
			return "", err
		}
		data := Quote(string(body))
		if r.SecretFile != "" {
			// The shell puts it in, so that it is not on the screen.
			data = strings.TrimSuffix(data, "}'") + `,"` + r.SecretMember + `":"'"$(cat ` + Quote(r.SecretFile) + `)"'"}'`
		}
		words = append(words, "--header", Quote("Content-Type: "+wire.TypeJSON), "--data", data)
	}
	return strings.Join(append(words, Quote(strings.TrimSuffix(bases[0], "/")+r.Path)), " "), nil
}

// Quote makes one word of s in any POSIX shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
