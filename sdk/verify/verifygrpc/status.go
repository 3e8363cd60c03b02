package verifygrpc

import (
	"context"
	"errors"
	"net/http"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/errandhq/errand/sdk/verify"
)

// Domain is that of the ErrorInfo in refusals.
const Domain = "errand"

// retryAfter is what an HTTP server says, too: Retry-After: 1.
const retryAfter = 1 // seconds

// answer makes a status of what would be an HTTP answer.
func answer(f *verify.Refusal) error {
	code := codes.Unauthenticated
	switch f.Status {
	case http.StatusForbidden:
		code = codes.PermissionDenied
	case http.StatusServiceUnavailable:
		code = codes.Unavailable
	}
	name, text := reasonOf(f.Err)
	return refused(code, name, text, f.Header.Get("WWW-Authenticate"))
}

// because replaces what a handler has returned when its context has ended for the grant's sake.
func because(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	name, text := reasonOf(cause)
	switch cause {
	case verify.ErrRevoked, verify.ErrExpired:
		return refused(codes.Unauthenticated, name, text, "")
	case verify.ErrStale:
		return refused(codes.Unavailable, name, text, "")
	}
	return err
}

// reasons are those of ErrorInfo, in its style, by the errors of package verify.
var reasons = []struct {
	err  error
	name string
}{
	{verify.ErrMissing, "NO_TOKEN"},
	{verify.ErrMalformed, "MALFORMED"},
	{verify.ErrSignature, "SIGNATURE"},
	{verify.ErrIssuer, "ISSUER"},
	{verify.ErrAudience, "AUDIENCE"},
	{verify.ErrExpired, "EXPIRED"},
	{verify.ErrRevoked, "REVOKED"},
	{verify.ErrUnbound, "UNBOUND"},
	{verify.ErrScope, "INSUFFICIENT_SCOPE"},
	{verify.ErrForbidden, "FORBIDDEN"},
	{verify.ErrStale, "VERIFIER_STALE"},
	{verify.ErrBusy, "VERIFIER_BUSY"},
}

// reasonNoRule is that of a method without a rule.
const reasonNoRule = "NO_RULE"

// reasonOf returns the name of a reason and its text, which is all that a client is told: what else an
// error says is for the server.
func reasonOf(err error) (name, text string) {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.name, r.err.Error()
		}
	}
	return "REFUSED", "refused"
}

func refused(code codes.Code, reason, message, challenge string) error {
	s := status.New(code, message)
	info := &errdetails.ErrorInfo{Reason: reason, Domain: Domain}
	if challenge != "" {
		info.Metadata = map[string]string{"www-authenticate": challenge}
	}
	var err error
	if code == codes.Unavailable {
		s, err = s.WithDetails(info, &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: retryAfter}})
	} else {
		s, err = s.WithDetails(info)
	}
	if err != nil {
		return status.Error(code, message)
	}
	return s.Err()
}
