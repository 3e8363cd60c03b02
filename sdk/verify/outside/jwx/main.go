// Command jwx verifies Errand's tokens with github.com/lestrrat-go/jwx. verifier.go is for you to
// copy; the rest lets a test talk to it.
package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/errandhq/errand/sdk/verify/outside/internal/lines"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "jwx:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c, err := lines.Environment()
	if err != nil {
		return err
	}
	v, err := newVerifier(ctx, c.Client, c.Issuer, c.Audience, c.KeyAge)
	if err != nil {
		return err
	}
	return lines.Serve(ctx, os.Stdin, os.Stdout, func(_ context.Context, token string, caller *x509.Certificate) (string, error) {
		verified, err := v.verify(token, caller)
		if err != nil {
			return "", err
		}
		subject, _ := verified.Subject()
		return subject, nil
	})
}
