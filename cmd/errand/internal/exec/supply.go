//go:build unix

package exec

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk"
)

// The files of a folder, by the variable that names them.
const (
	tokenFile  = "token"
	certFile   = "cert.pem"
	keyFile    = "key.pem"
	bundleFile = "bundle.pem"
	curlFile   = "curl.conf"
)

const (
	lookEvery  = time.Second            // how often it is seen whether there is a newer token
	lookAtMost = 100 * time.Millisecond // and when its end is near
	lastToken  = 4 * time.Second        // before the deadline: the broker gives none that lives for less than 2 s, in whole seconds
)

// supply keeps the folder of one audience filled.
type supply struct {
	client *sdk.Client
	task   *sdk.Task
	ask    sdk.TokenRequest
	folder folder
	key    bool // with certificate and key
	curl   bool
	say    func(format string, args ...any)
	until  time.Time // the task's deadline; zero if none was asked for

	grant   string // what is in the folder
	bundle  string
	expires time.Time
	failing bool
}

// keep looks until ctx ends. The SDK decides when there is a new token, which is ahead of the expiry of
// the old one, and soon after the SVID was replaced.
func (s *supply) keep(ctx context.Context) {
	for {
		wait := min(lookEvery, max(lookAtMost, time.Until(s.expires)/10))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		err := s.look(ctx)
		switch {
		case err == nil:
			s.failing = false
		case ctx.Err() != nil || errors.Is(err, sdk.ErrTaskEnded) || errors.Is(err, sdk.ErrAdopted):
			return
		case !s.until.IsZero() && time.Until(s.until) < lastToken:
			// None lives beyond the deadline, so that this is no news.
		case !s.failing:
			s.failing = true
			s.say("the token for %s is not renewed: %v; the one that is there expires at %s", s.ask.Audience, err, s.expires.Format(time.TimeOnly))
		}
	}
}

// look puts what is newer into the folder.
func (s *supply) look(ctx context.Context) error {
	token, err := s.task.Token(ctx, s.ask)
	if err != nil {
		return err
	}
	authorities, err := s.client.Bundle()
	if err != nil {
		return err
	}
	bundle, err := authorities.Marshal()
	if err != nil {
		return err
	}
	if token.GrantID == s.grant && string(bundle) == s.bundle {
		return nil
	}
	err = s.folder.put(func(dir string) ([]file, error) { return s.files(dir, token, bundle) })
	if err != nil {
		return err
	}
	s.grant, s.bundle, s.expires = token.GrantID, string(bundle), token.Expires
	return nil
}

// files are the token and all that goes with it.
func (s *supply) files(dir string, token *sdk.Token, bundle []byte) ([]file, error) {
	list := []file{{tokenFile, []byte(token.Secret())}, {bundleFile, bundle}}
	if s.key {
		certs, key, err := token.SVID().Marshal()
		if err != nil {
			return nil, err
		}
		list = append(list, file{certFile, certs}, file{keyFile, key})
	}
	if s.curl {
		list = append(list, file{curlFile, s.curlConfig(dir, token)})
	}
	return list, nil
}

// curlConfig names the files of its own generation, so that curl reads what belongs together also when
// the folder is replaced meanwhile.
func (s *supply) curlConfig(dir string, token *sdk.Token) []byte {
	var b strings.Builder
	set := func(name, value string) {
		fmt.Fprintf(&b, "%s = \"%s\"\n", name, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value))
	}
	set("header", "Authorization: "+token.Header())
	set("cacert", filepath.Join(dir, bundleFile))
	if s.key {
		set("cert", filepath.Join(dir, certFile))
		set("key", filepath.Join(dir, keyFile))
	}
	return []byte(b.String())
}
