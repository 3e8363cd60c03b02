package main

import (
	"context"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/errandhq/errand/sdk"
)

// patience bounds how long replay waits for a refusal. It comes within milliseconds.
const patience = 5 * time.Second

// replay sends a token of a task that is over, as somebody would who has kept it, until the server
// refuses it, and returns the answer. No service needs this: it is here to show that the token is dead
// where it counts, and not only in the SDK.
func replay(ctx context.Context, client *sdk.Client, token *sdk.Token, orders string) (string, error) {
	bundle, err := client.Bundle()
	if err != nil {
		return "", err
	}
	transport := &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(token.SVID(), bundle, tlsconfig.AuthorizeMemberOf(client.ID().TrustDomain()))}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, orders, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", token.Header())
	for start := time.Now(); ; {
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return "", err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || time.Since(start) > patience {
			return resp.Status + ", " + resp.Header.Get("WWW-Authenticate"), nil
		}
	}
}
