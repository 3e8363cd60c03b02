// Package verify checks the broker's tokens inside a resource server: signature and claims offline,
// and whether the task behind a token has ended from a live feed, with a bound on how old that
// knowledge may be.
//
//	v, err := verify.New(ctx, verify.Config{
//		Issuer:   "https://broker.example.com:8444",
//		Audience: "orders",
//		Files:    &verify.Files{Cert: "svid.pem", Key: "svid_key.pem", Bundle: "bundle.pem", BrokerID: "spiffe://example.com/errand"},
//	})
//	defer v.Close()
//	mux.Handle("GET /orders", v.Require("orders:read")(listOrders))
//
// A token is bound to its workload's certificate. So the server must serve TLS that asks for one
// (tls.Config.ClientAuth with RequestClientCert or more), or every token is refused; one that cannot see
// the caller's certificate says Config.Binding: Unbound, and registers its audience without binding. The
// inventory of the broker must have the server's SPIFFE ID among those of the audience.
//
// What it promises, with the defaults: a token is accepted only if it is whole, signed by a current
// key of the issuer, for this audience, not expired, presented by the workload that it was issued
// to, and not of a task, grant, key or selection that was ended or revoked. A verifier that hears
// the feed learns of an end in milliseconds; one that does not refuses everything with 503 once its
// knowledge is older than Config.MaxStale. Nothing is ever accepted because something could not be
// checked, unless a named relaxation in Config says so.
//
// Verify asks nobody: the one thing it may wait for, briefly, is the key set, when a token names a
// key that has never been seen.
//
// Require asks for scopes, Middleware for any Requirement: Scope, AnyScope, Workload, or a Check of
// your own. Authorize is for frameworks with another kind of middleware, and Verify for everything that
// is not HTTP; follow them with Watch, so that what runs ends with its grant. It ends when the token
// expires, too, and KeepInFlight opts a route out of both.
//
// Every 30 s the broker is told which grants and scopes were used, so that its audit log has it: each
// check is counted in one report, or as one that found no room. Nothing waits for that. Flush sends it
// at once, Config.NoUsage turns it off. The broker is also told how far the verifier has heard, when that
// has changed and every 15 s, so that an end can wait until all have confirmed it; nothing turns that off.
//
// Metadata serves RFC 9728 for clients that look for it, and Config.CacheFile bridges a start while the
// broker is down. Ready and Status are for probes, Hooks for metrics.
//
// Explain says check by check why one token is accepted or refused; errand verify prints that.
//
// The package needs the standard library and go-jose. Package verifyspiffe takes certificates from
// the SPIFFE Workload API instead of files.
package verify
