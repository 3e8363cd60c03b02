// Package sdkoauth2 hands a task's tokens to libraries that want an oauth2.TokenSource. Use
// TokenSource; where you make the requests yourself, sdk.Task.HTTPClient is the better way.
//
//	source := sdkoauth2.TokenSource(task, sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})
//	orders, err := shop.NewClient(shop.WithTokenSource(source))
//
// What it promises: no token comes out of it once the task has ended, whoever caches. What it cannot
// promise: where the library sends the token, since that is the library's to decide; and that it shows
// the certificate that a bound token needs. Give the library connections that do (sdk.Token.SVID), or
// register the audience with another binding.
package sdkoauth2

import (
	"time"

	"golang.org/x/oauth2"

	"github.com/errandhq/errand/sdk"
)

// TokenSource returns a source of tokens of the task. It depends on the task's Context, and on none
// that it was made with; once the task has ended every call fails with sdk.ErrTaskEnded. Other errors
// are those of sdk.Task.Token.
//
// The task has a cache already, with renewal in time. So each token says that it expires now: what
// keeps tokens by their Expiry, as oauth2.ReuseTokenSource and oauth2.NewClient do, asks again for each
// request instead of using one after the task. When it really expires is the Extra "expires_at", a
// time.Time, and its grant the Extra "grant_id".
func TokenSource(t *sdk.Task, req sdk.TokenRequest) oauth2.TokenSource { return &source{t, req} }

type source struct {
	task *sdk.Task
	ask  sdk.TokenRequest
}

// Token implements oauth2.TokenSource.
func (s *source) Token() (*oauth2.Token, error) {
	token, err := s.task.Token(s.task.Context(), s.ask)
	if err != nil {
		return nil, err
	}
	out := &oauth2.Token{AccessToken: token.Secret(), TokenType: "Bearer", Expiry: time.Now()}
	return out.WithExtra(map[string]any{"grant_id": token.GrantID, "expires_at": token.Expires}), nil
}
