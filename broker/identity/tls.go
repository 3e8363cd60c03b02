package identity

import "crypto/tls"

// ServerTLS is for the listener that workloads call: TLS 1.3 with a client certificate that
// Source.Verify accepts.
//
// The verdict is in VerifyConnection, which runs for resumed sessions too, and there are none
// anyway: crypto/tls would resume one whose authority has been removed since (CVE-2025-68121). No
// ClientCAs are set, because one pool would let every trust domain's authorities speak for all.
func ServerTLS(s *Source) *tls.Config {
	config := PublicTLS(s)
	config.ClientAuth = tls.RequireAnyClientCert
	config.SessionTicketsDisabled = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		_, err := s.Verify(state.PeerCertificates, s.now())
		return err
	}
	return config
}

// PublicTLS is for a listener that asks nobody for a certificate: TLS 1.3 with the broker's own
// SVID, whichever it is when a client connects.
func PublicTLS(s *Source) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			t, err := s.trust()
			if err != nil {
				return nil, err
			}
			return t.certificate, nil
		},
	}
}
