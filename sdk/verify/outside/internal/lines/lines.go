// Package lines makes a verifier a program that a test can talk to. Call Serve with what judges a token.
//
// The program reads one JSON object for each token from its standard input, {"token", "certificate"},
// where certificate is the caller's in DER and base64, and answers each with one line on its standard
// output: {"subject"} if it accepts the token, {"error"} if it does not. ERRAND_ISSUER and
// ERRAND_AUDIENCE say for whom it verifies, ERRAND_CA is the file with the CA of the issuer's public
// listener, and ERRAND_KEY_AGE is how long the key set may be used.
package lines

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// Config is what the environment says.
type Config struct {
	Issuer, Audience string
	Client           *http.Client // trusts ERRAND_CA alone
	KeyAge           time.Duration
}

// Environment reads the configuration.
func Environment() (Config, error) {
	pem, err := os.ReadFile(os.Getenv("ERRAND_CA"))
	if err != nil {
		return Config{}, fmt.Errorf("ERRAND_CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return Config{}, fmt.Errorf("ERRAND_CA: %s has no certificate in PEM", os.Getenv("ERRAND_CA"))
	}
	age, err := time.ParseDuration(os.Getenv("ERRAND_KEY_AGE"))
	if err != nil {
		return Config{}, fmt.Errorf("ERRAND_KEY_AGE: %w", err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	return Config{
		Issuer: os.Getenv("ERRAND_ISSUER"), Audience: os.Getenv("ERRAND_AUDIENCE"),
		Client: &http.Client{Transport: transport, Timeout: 5 * time.Second}, KeyAge: age,
	}, nil
}

type question struct {
	Token       string `json:"token"`
	Certificate []byte `json:"certificate"`
}

type answer struct {
	Subject string `json:"subject,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Serve answers until in ends.
func Serve(ctx context.Context, in io.Reader, out io.Writer, verify func(context.Context, string, *x509.Certificate) (string, error)) error {
	questions := bufio.NewScanner(in)
	questions.Buffer(nil, 1<<20)
	answers := json.NewEncoder(out)
	for questions.Scan() {
		var q question
		if err := json.Unmarshal(questions.Bytes(), &q); err != nil {
			return err
		}
		caller, err := x509.ParseCertificate(q.Certificate)
		if err != nil {
			return err
		}
		var a answer
		if a.Subject, err = verify(ctx, q.Token, caller); err != nil {
			a = answer{Error: err.Error()}
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
	return questions.Err()
}
