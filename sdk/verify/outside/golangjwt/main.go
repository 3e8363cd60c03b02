// Command golangjwt verifies Errand's tokens with github.com/golang-jwt/jwt and
// github.com/MicahParks/keyfunc. verifier.go is for you to copy; the rest lets a test talk to it.
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
		fmt.Fprintln(os.Stderr, "golangjwt:", err)
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
		claims, err := v.verify(token, caller)
		if err != nil {
			return "", err
		}
		return claims.Subject, nil
	})
}
