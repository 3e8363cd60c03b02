// Package identity says which workload is at the other end of a connection. Make a Source with
// FromWorkloadAPI or FromFiles, name further trust domains with Federate, call Run for as long as it
// lives, serve with ServerTLS and ConnContext, and ask Source.Workload on every request.
//
// A peer is a workload when its X509-SVID was signed by an authority of its own trust domain: every
// trust domain is judged by its own bundle only, and never by the system's roots. Beyond what
// go-spiffe checks, the ID must have a path and be written in its one canonical way, the certificate
// must be for signing and for clients, its life must be short, and chains and keys have bounds that
// are looked at before any signature is.
//
// Trust ends when a bundle is withdrawn where it comes from, and at the latest when it could not be
// read again for its maximum age: then its peers are refused until it can be. A bundle that is
// withdrawn on purpose is one without authorities, or one that the Workload API delivers no more, or
// that the configuration does not name any more; a file that is gone, or an endpoint that is silent,
// may be a fault, and only grows old.
//
// A verdict is never older than the trust it rests on: it is kept for a connection, made anew when
// the bundles have changed, and refused once the certificate has expired. So a connection does not
// outlive a removed trust domain, and resumed sessions, which would skip the check, do not exist.
package identity
