package devmode

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// Identity is the other end of a Workload API socket: an SVID that keeps itself fresh, for the
// samples and commands that act as one of the development workloads.
type Identity struct {
	source *workloadapi.X509Source
	id     spiffeid.ID
}

// Open takes the identity from the Workload API at addr. It waits for the first SVID until ctx ends.
// The caller closes it.
func Open(ctx context.Context, addr string) (*Identity, error) {
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		return nil, fmt.Errorf("devmode: no identity from %s; is errand dev running?: %w", addr, err)
	}
	svid, err := source.GetX509SVID()
	if err != nil {
		source.Close()
		return nil, fmt.Errorf("devmode: no identity from %s: %w", addr, err)
	}
	return &Identity{source: source, id: svid.ID}, nil
}

// ID is the SPIFFE ID.
func (i *Identity) ID() spiffeid.ID { return i.id }

// Source is the SVID and the trust bundles, as go-spiffe's sources.
func (i *Identity) Source() *workloadapi.X509Source { return i.source }

// ClientTLS presents the SVID to any server of the same trust domain.
func (i *Identity) ClientTLS() *tls.Config {
	config := tlsconfig.MTLSClientConfig(i.source, i.source, tlsconfig.AuthorizeMemberOf(i.id.TrustDomain()))
	config.MinVersion = tls.VersionTLS13
	return config
}

// ServerTLS presents the SVID, and asks for one of any workload of the same trust domain.
func (i *Identity) ServerTLS() *tls.Config {
	config := tlsconfig.MTLSServerConfig(i.source, i.source, tlsconfig.AuthorizeMemberOf(i.id.TrustDomain()))
	config.MinVersion = tls.VersionTLS13
	// go-spiffe checks the peer in a callback that a resumed session skips.
	config.SessionTicketsDisabled = true
	return config
}

// WriteFiles writes svid.pem, svid_key.pem and svid_bundle.pem into dir one after the other, with
// a mode that keeps the key to its owner, and returns their paths.
func (i *Identity) WriteFiles(dir string) ([]string, error) {
	svid, err := i.source.GetX509SVID()
	if err != nil {
		return nil, err
	}
	certs, key, err := svid.Marshal()
	if err != nil {
		return nil, err
	}
	bundle, err := i.source.GetX509BundleForTrustDomain(i.id.TrustDomain())
	if err != nil {
		return nil, err
	}
	var roots []byte
	for _, root := range bundle.X509Authorities() {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var paths []string
	for _, f := range []struct {
		name string
		text []byte
	}{{"svid_key.pem", key}, {"svid.pem", certs}, {"svid_bundle.pem", roots}} {
		path := filepath.Join(dir, f.name)
		if err := replace(path, f.text); err != nil {
			return paths, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// replace writes a file under another name first, so that a reader never sees half of it.
func replace(path string, text []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".svid-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(text); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// Close ends the connection to the Workload API.
func (i *Identity) Close() error { return i.source.Close() }
