// Package verifygrpc is package verify for gRPC servers. Give Unary and Stream the same Rules, and
// install both: a server with one of them alone leaves the other kind of method open.
//
//	rules := verifygrpc.Rules{
//		"/shop.Orders/List":               {verify.Scope("orders:read")},
//		"/grpc.health.v1.Health/*":        {verifygrpc.Public()},
//	}
//	server := grpc.NewServer(
//		grpc.Creds(credentials.NewTLS(config)), // asks for the caller's certificate
//		grpc.UnaryInterceptor(verifygrpc.Unary(v, rules)),
//		grpc.StreamInterceptor(verifygrpc.Stream(v, rules)),
//	)
//
// What it promises: a method without a rule is refused, whatever comes with the call. The token is
// that of the one authorization entry of the metadata, and the caller's certificate that of the TLS
// connection; Config.Peer sees it as that of an HTTP request. The context of a handler ends when the
// grant dies or expires, and a stream ends with it, since gRPC sends a token once, when the stream
// opens. Handlers find the grant by verify.FromContext.
//
// Refusals are Unauthenticated where the verifier would answer 401, PermissionDenied for 403, and
// Unavailable for 503, where trying again helps. Each has an ErrorInfo with the reason, and the
// challenge of RFC 6750 under "www-authenticate".
package verifygrpc

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/errandhq/errand/sdk/verify"
)

// Rules has what each method requires, by its full name, as "/shop.Orders/List", or for all others
// of its service, "/shop.Orders/*". No requirement at all means any good token. Unary and Stream take a
// copy, and panic on names that no method has, so that the mistake is seen when the server starts.
type Rules map[string][]verify.Requirement

// public lets nobody through where it is looked at like any other: only Rules know it.
var public = verify.Check("public", func(context.Context, *verify.Grant) error { return verify.ErrForbidden })

// Public marks a method that needs no token. It stands alone.
func Public() verify.Requirement { return public }

// check copies the rules.
func (r Rules) check() Rules {
	for name, reqs := range r {
		service, method, ok := strings.Cut(strings.TrimPrefix(name, "/"), "/")
		switch {
		case !strings.HasPrefix(name, "/") || !ok || service == "" || method == "" || strings.Contains(method, "/"):
			panic(fmt.Sprintf("verifygrpc: %q is not the full name of a method, as /shop.Orders/List, nor of a service, as /shop.Orders/*", name))
		case slices.Contains(reqs, nil):
			panic(fmt.Sprintf("verifygrpc: a requirement of %s is nil", name))
		case slices.Contains(reqs, public) && len(reqs) > 1:
			panic(fmt.Sprintf("verifygrpc: %s is Public and requires something; choose one", name))
		}
	}
	return maps.Clone(r)
}

// of finds the rule of a method.
func (r Rules) of(method string) (reqs []verify.Requirement, ok bool) {
	if reqs, ok = r[method]; !ok {
		reqs, ok = r[method[:strings.LastIndexByte(method, '/')+1]+"*"]
	}
	return reqs, ok
}

// Unary checks unary calls.
func Unary(v *verify.Verifier, r Rules) grpc.UnaryServerInterceptor {
	r = r.check()
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		ctx, done, err := admit(ctx, v, r, info.FullMethod)
		if err != nil {
			return nil, err
		}
		defer done()
		resp, err := next(ctx, req)
		if err != nil {
			return nil, because(ctx, err)
		}
		return resp, nil
	}
}

// Stream checks streams, and ends those whose grant has died or expired: what waits for a message, or
// for a client to read one, returns, and sends fail. What was sent before that, at most 64 KiB and a
// message, may still be on its way.
func Stream(v *verify.Verifier, r Rules) grpc.StreamServerInterceptor {
	r = r.check()
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx, done, err := admit(ss.Context(), v, r, info.FullMethod)
		if err != nil {
			return err
		}
		defer done()
		return because(ctx, next(srv, &watched{ss, ctx}))
	}
}

// admit looks at a call, and returns the context for its handler.
func admit(ctx context.Context, v *verify.Verifier, r Rules, method string) (context.Context, func(), error) {
	reqs, ok := r.of(method)
	switch {
	case !ok:
		return nil, nil, refused(codes.PermissionDenied, reasonNoRule, fmt.Sprintf("the server has no rule for %s", method), "")
	case slices.Contains(reqs, public):
		return ctx, func() {}, nil
	}
	grant, refusal := v.Authorize(request(ctx, method), reqs...)
	if refusal != nil {
		return nil, nil, answer(refusal)
	}
	ctx = verify.NewContext(ctx, grant)
	if slices.Contains(reqs, verify.KeepInFlight()) {
		return ctx, func() {}, nil
	}
	ctx, cancel, err := v.Watch(ctx, grant)
	if err != nil {
		name, text := reasonOf(err)
		return nil, nil, refused(codes.Unavailable, name, text, "")
	}
	return ctx, cancel, nil
}

// request is a call as the verifier knows them.
func request(ctx context.Context, method string) *http.Request {
	r := (&http.Request{Method: http.MethodPost, Proto: "HTTP/2.0", ProtoMajor: 2, Header: http.Header{}, RequestURI: method}).WithContext(ctx)
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		r.Header["Authorization"] = md.Get("authorization")
	}
	if p, ok := peer.FromContext(ctx); ok {
		if p.Addr != nil {
			r.RemoteAddr = p.Addr.String()
		}
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	return r
}

// watched is a stream that ends with its context.
type watched struct {
	grpc.ServerStream
	ctx context.Context
}

func (w *watched) Context() context.Context { return w.ctx }

// SendMsg waits for a client that reads no more no longer than the context lasts, and afterwards sends
// nothing.
func (w *watched) SendMsg(m any) error { return w.wait(w.ServerStream.SendMsg, m) }

// RecvMsg does not wait longer than the context lasts, either.
func (w *watched) RecvMsg(m any) error { return w.wait(w.ServerStream.RecvMsg, m) }

// wait returns when the context ends, at the latest. What waits for the client still returns when the
// handler does, which ends the stream; nobody may touch the message before that.
func (w *watched) wait(do func(any) error, m any) error {
	if w.ctx.Done() == w.ServerStream.Context().Done() {
		return do(m) // nothing else ends it
	}
	if w.ctx.Err() != nil {
		return w.over()
	}
	done := make(chan error, 1)
	go func() { done <- do(m) }()
	select {
	case err := <-done:
		return err
	case <-w.ctx.Done():
		return w.over()
	}
}

// over says why the context has ended.
func (w *watched) over() error {
	return because(w.ctx, status.FromContextError(w.ctx.Err()).Err())
}
