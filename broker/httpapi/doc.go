// Package httpapi is the broker over HTTP: listeners, routes, the order of middleware, and the one
// table from errors to answers. Start with New, and serve Workload, Public, Operator and Ops each
// through NewServer, on a listener that Bound has made.
//
// Every request to the workload listener passes, in this order: request ID, panic guard, log and
// metrics, identity (the verdict on the peer's SVID, made anew when the trust bundles have changed), the
// peer's rate, size and shape of the body, a place among the requests of its kind, and then one
// handler, which decodes, calls one method of the domain and encodes. Handlers are plain functions of typed
// requests; only echo.go knows the framework.
//
// What is promised: a request that is refused changes nothing; an error answers with a problem
// document (RFC 9457) whose type is stable; no body, query or token is ever logged.
package httpapi
