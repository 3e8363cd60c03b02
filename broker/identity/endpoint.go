package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// Bounds of one question to a bundle endpoint; its answer has MaxBundle.
const (
	FetchTimeout = 10 * time.Second
	MaxRedirects = 3 // to the same host and port
	maxHeader    = 16 << 10
)

// fetch asks the endpoint (SPIFFE Federation, §5.2). go-spiffe's federation.FetchBundle would read an
// answer of any length, and follow a redirect to anywhere.
func (f *foreign) fetch(ctx context.Context, s *Source) (document, error) {
	config, err := f.endpointTLS(s)
	if err != nil {
		return document{}, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true,
		DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: s.fetch, CheckRedirect: stay}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL, http.NoBody)
	if err != nil {
		return document{}, err
	}
	response, err := client.Do(request)
	if err != nil {
		return document{}, fmt.Errorf("%s: %w", f.URL, plain(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return document{}, fmt.Errorf("%s answers %s", f.URL, response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, MaxBundle+1))
	if err != nil {
		return document{}, fmt.Errorf("%s: %w", f.URL, plain(err))
	}
	d, err := parseDocument(f.td, text)
	if err != nil {
		return document{}, fmt.Errorf("%s: %w", f.URL, err)
	}
	return d, nil
}

// stay refuses to go where the configuration does not point.
func stay(next *http.Request, via []*http.Request) error {
	if len(via) > MaxRedirects {
		return fmt.Errorf("it redirects more than %d times", MaxRedirects)
	}
	if first := via[0].URL; next.URL.Scheme != first.Scheme || next.URL.Host != first.Host || next.URL.User != nil {
		return fmt.Errorf("it redirects to %s://%s; set URL to that if it is meant", next.URL.Scheme, next.URL.Host)
	}
	return nil
}

// plain leaves out what is different each time, so that the same failure is logged once.
func plain(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}

// endpointTLS is made anew for each question, by what the endpoint is known by at this moment.
func (f *foreign) endpointTLS(s *Source) (*tls.Config, error) {
	if f.Profile == HTTPSSPIFFE {
		b, err := f.held(s)
		if err != nil {
			return nil, err
		}
		config := tlsconfig.TLSClientConfig(b, tlsconfig.AuthorizeID(spiffeid.RequireFromString(f.EndpointID)))
		config.MinVersion = tls.VersionTLS12
		return config, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CAFile == "" {
		return config, nil
	}
	text, err := readFile("CA", f.CAFile)
	if err != nil {
		return nil, err
	}
	if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("the CA file %s has no certificate", f.CAFile)
	}
	return config, nil
}

// held is what an endpoint of the trust domain is known by: the last bundle from it, and before the
// first the bootstrap file (SPIFFE Federation, §5.2.2.4). Age does not matter here: nobody but the
// endpoint is believed by it, and how else would it come back.
func (f *foreign) held(s *Source) (*x509bundle.Bundle, error) {
	s.mu.Lock()
	b := f.bundle
	s.mu.Unlock()
	if b != nil {
		return b, nil
	}
	text, err := readFile("bootstrap", f.Bootstrap)
	if err != nil {
		return nil, err
	}
	d, err := parseBundle(f.td, text)
	if err != nil {
		return nil, fmt.Errorf("the bootstrap file %s: %w", f.Bootstrap, err)
	}
	return d.bundle, nil
}
