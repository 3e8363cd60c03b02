// Package verifyecho is package verify for echo v4. Use Require for routes, and Grant in their
// handlers.
//
//	e.GET("/orders", list, verifyecho.Require(v, "orders:read"))
//
// What it promises is what verify.Verifier.Middleware does: the same refusals, and a request's context
// that ends when the grant dies while the handler runs, and with it what the handler writes. A refusal is
// written as it is, and does not come by echo's HTTPErrorHandler. The handler reads the context of
// c.Request(), and writes to c.Response().
package verifyecho

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/errandhq/errand/sdk/verify"
)

// Require lets a request through if its token is good and has all the scopes.
func Require(v *verify.Verifier, scopes ...string) echo.MiddlewareFunc {
	return Middleware(v, verify.Scope(scopes...))
}

// Middleware lets a request through if its token is good and meets the requirements.
func Middleware(v *verify.Verifier, reqs ...verify.Requirement) echo.MiddlewareFunc {
	check := v.Middleware(reqs...)
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) (err error) {
			outer := c.Response()
			defer c.SetResponse(outer)
			pass := func(w http.ResponseWriter, r *http.Request) {
				c.SetRequest(r)
				c.SetResponse(echo.NewResponse(w, c.Echo()))
				err = next(c)
			}
			check(http.HandlerFunc(pass)).ServeHTTP(outer, c.Request())
			return err
		}
	}
}

// Grant is the grant of the request's token, and nil where no middleware of this package has let the
// request through.
func Grant(c echo.Context) *verify.Grant {
	g, _ := verify.FromContext(c.Request().Context())
	return g
}
