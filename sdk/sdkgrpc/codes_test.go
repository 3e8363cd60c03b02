package sdkgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/sdkgrpc"
)

var wantCodes = map[string]struct {
	err  error
	code codes.Code
}{
	"ErrInvalid":         {sdk.ErrInvalid, codes.Internal},
	"ErrUnauthenticated": {sdk.ErrUnauthenticated, codes.Unauthenticated},
	"ErrUnregistered":    {sdk.ErrUnregistered, codes.Unauthenticated},
	"ErrDenied":          {sdk.ErrDenied, codes.PermissionDenied},
	"ErrScopeExceeded":   {sdk.ErrScopeExceeded, codes.PermissionDenied},
	"ErrQuarantined":     {sdk.ErrQuarantined, codes.PermissionDenied},
	"ErrQuota":           {sdk.ErrQuota, codes.ResourceExhausted},
	"ErrRateLimited":     {sdk.ErrRateLimited, codes.ResourceExhausted},
	"ErrNotFound":        {sdk.ErrNotFound, codes.Unauthenticated},
	"ErrTaskEnded":       {sdk.ErrTaskEnded, codes.Unauthenticated},
	"ErrRevoked":         {sdk.ErrRevoked, codes.Unauthenticated},
	"ErrLeaseLost":       {sdk.ErrLeaseLost, codes.Unauthenticated},
	"ErrDeadline":        {sdk.ErrDeadline, codes.Unauthenticated},
	"ErrParentEnded":     {sdk.ErrParentEnded, codes.Unauthenticated},
	"ErrAdopted":         {sdk.ErrAdopted, codes.Unauthenticated},
	"ErrNotDelegate":     {sdk.ErrNotDelegate, codes.PermissionDenied},
	"ErrHandleUsed":      {sdk.ErrHandleUsed, codes.Unauthenticated},
	"ErrHandleExpired":   {sdk.ErrHandleExpired, codes.Unauthenticated},
	"ErrEndUnconfirmed":  {&sdk.EndError{Err: sdk.ErrUnavailable}, codes.Unauthenticated},
	"ErrUnavailable":     {sdk.ErrUnavailable, codes.Unavailable},
	"ErrBrokerID":        {sdk.ErrBrokerID, codes.Unauthenticated},
	"ErrNoIdentity":      {sdk.ErrNoIdentity, codes.Unavailable},
	"ErrHost":            {sdk.ErrHost, codes.PermissionDenied},
	"ErrUnbound":         {sdk.ErrUnbound, codes.Unauthenticated},
	"ErrClosed":          {sdk.ErrClosed, codes.Unauthenticated},
	"Canceled":           {context.Canceled, codes.Canceled},
	"DeadlineExceeded":   {context.DeadlineExceeded, codes.DeadlineExceeded},
}

// TestCodes: each error of sdk has its code, and stays itself.
func TestCodes(t *testing.T) {
	for name, c := range wantCodes {
		want(t, name, sdkgrpc.Refusal(fmt.Errorf("sdk: %w", c.err)), c.code, c.err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "../errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Err") {
			found++
			if _, ok := wantCodes[spec.Names[0].Name]; !ok {
				t.Errorf("sdk.%s has no code: give it one", spec.Names[0].Name)
			}
		}
		return true
	})
	if found < 25 {
		t.Errorf("only %d errors were found in package sdk", found)
	}
}

// TestRetryInfo: when to try again is as the broker says, and is not made up.
func TestRetryInfo(t *testing.T) {
	for _, c := range []struct {
		answer *sdk.Error
		code   codes.Code
	}{
		{&sdk.Error{Status: http.StatusTooManyRequests, Type: "https://broker/problems/rate-limited", RetryAfter: 2 * time.Second}, codes.ResourceExhausted},
		{&sdk.Error{Status: http.StatusServiceUnavailable, Type: "https://broker/problems/not-ready", RetryAfter: time.Second}, codes.Unavailable},
		{&sdk.Error{Status: http.StatusTooManyRequests, Type: "https://broker/problems/quota-exceeded"}, codes.ResourceExhausted},
	} {
		err := sdkgrpc.Refusal(fmt.Errorf("sdk: %w", c.answer))
		s, got := status.Convert(err), time.Duration(0)
		for _, d := range s.Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				got = info.RetryDelay.AsDuration()
			}
		}
		var same *sdk.Error
		if s.Code() != c.code || got != c.answer.RetryAfter || !errors.As(err, &same) || same != c.answer {
			t.Errorf("%v: %v, again after %s", c.answer, s.Code(), got)
		}
	}
}
