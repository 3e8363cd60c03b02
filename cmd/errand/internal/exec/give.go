//go:build unix

package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/errandhq/errand/sdk"
)

// The variables that the command gets. Those of files are there with a folder, those of the endpoint
// with Serve.
const (
	EnvTokenDirs  = "ERRAND_TOKEN_DIRS" // has a folder for each audience
	EnvTokenDir   = "ERRAND_TOKEN_DIR"  // of the first audience, as the files are
	EnvTokenFile  = "ERRAND_TOKEN_FILE"
	EnvCertFile   = "ERRAND_CERT_FILE"
	EnvKeyFile    = "ERRAND_KEY_FILE"
	EnvBundleFile = "ERRAND_BUNDLE_FILE"
	EnvCurlConfig = "ERRAND_CURL_CONFIG"
	EnvTokenURL   = "ERRAND_TOKEN_URL"
	EnvTokenAuth  = "ERRAND_TOKEN_AUTH"
)

// ours are the variables that an errand exec around this one may have set.
var ours = []string{EnvTaskID, EnvTaskHandle, EnvTokenDirs, EnvTokenDir, EnvTokenFile, EnvCertFile, EnvKeyFile, EnvBundleFile, EnvCurlConfig, EnvTokenURL, EnvTokenAuth}

// gifts are what the command is given: variables, open files, and what is kept up to date.
type gifts struct {
	env      []string
	files    []*os.File // by descriptor; nil is closed in the command
	supplies []*supply
	home     *home
	endpoint *endpoint
	pump     func() // writes the standard input
	endKey   string // the file, to be removed
	opened   []io.Closer
}

func (g *gifts) set(name, value string) { g.env = append(g.env, name+"="+value) }

// close takes back what the command could still use.
func (g *gifts) close() error {
	var failed []error
	if g.home != nil {
		failed = append(failed, g.home.remove())
	}
	if g.endpoint != nil {
		failed = append(failed, g.endpoint.close())
	}
	if g.endKey != "" {
		failed = append(failed, os.Remove(g.endKey))
	}
	g.closeFiles()
	*g = gifts{}
	return errors.Join(failed...)
}

// closeFiles lets go of what belongs to the command alone once it runs.
func (g *gifts) closeFiles() {
	for _, c := range g.opened {
		_ = c.Close()
	}
	g.opened = nil
}

// give asks for the first tokens and lays everything out.
func (r *run) give(ctx context.Context) (err error) {
	g := &r.gifts
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains(ours, name) && name != r.Env {
			g.env = append(g.env, v)
		}
	}
	g.set(EnvTaskID, r.task.ID())
	g.files = []*os.File{r.Input, os.Stdout, os.Stderr}
	var first *sdk.Token
	for i, ask := range r.Asks {
		token, err := r.task.Token(ctx, r.request(ask))
		if err != nil {
			return fmt.Errorf("no token for %s: %w", ask.Audience, err)
		}
		if i == 0 {
			first = token
		}
	}
	steps := []func(context.Context, *sdk.Token) error{r.giveFiles, r.giveEndpoint, r.giveEnv, r.giveInput, r.giveFD, r.giveEndKey}
	for _, step := range steps {
		if err := step(ctx, first); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) request(ask Ask) sdk.TokenRequest {
	return sdk.TokenRequest{Audience: ask.Audience, Scopes: ask.Scopes, TTL: r.TTL}
}

// giveFiles makes the folders and fills them. The SDK has the tokens in memory.
func (r *run) giveFiles(ctx context.Context, _ *sdk.Token) (err error) {
	if r.NoFiles {
		return nil
	}
	g := &r.gifts
	if g.home, err = newHome(os.Getenv); err != nil {
		return err
	}
	for _, ask := range r.Asks {
		s := &supply{
			client: r.client, task: r.task, ask: r.request(ask), key: !r.NoKey, curl: r.Curl, say: r.say,
			folder: folder{home: g.home.path, name: folderOf(ask.Audience)},
		}
		if r.Task.Deadline > 0 {
			s.until = r.begun.Add(r.Task.Deadline)
		}
		if err := s.look(ctx); err != nil {
			return fmt.Errorf("the folder for %s: %w", ask.Audience, err)
		}
		g.supplies = append(g.supplies, s)
	}
	dir := g.supplies[0].folder.path()
	g.set(EnvTokenDirs, g.home.path)
	g.set(EnvTokenDir, dir)
	g.set(EnvTokenFile, filepath.Join(dir, tokenFile))
	g.set(EnvBundleFile, filepath.Join(dir, bundleFile))
	if !r.NoKey {
		g.set(EnvCertFile, filepath.Join(dir, certFile))
		g.set(EnvKeyFile, filepath.Join(dir, keyFile))
	}
	if r.Curl {
		g.set(EnvCurlConfig, filepath.Join(dir, curlFile))
	}
	return nil
}

func (r *run) giveEndpoint(context.Context, *sdk.Token) (err error) {
	if !r.Serve {
		return nil
	}
	g := &r.gifts
	if g.endpoint, err = newEndpoint(r.task, r.Asks, r.TTL); err != nil {
		return fmt.Errorf("no endpoint on loopback: %w", err)
	}
	g.set(EnvTokenURL, g.endpoint.url())
	g.set(EnvTokenAuth, g.endpoint.secret)
	return nil
}

// roundedDown is how much earlier than the task's deadline a token's end may be: both are whole seconds
// of the broker's clock, and its answer took a while.
const roundedDown = 2 * time.Second

func (r *run) giveEnv(_ context.Context, token *sdk.Token) error {
	if r.Env == "" {
		return nil
	}
	if short := r.begun.Add(r.Task.Deadline).Sub(token.Expires); short > roundedDown {
		return fmt.Errorf("--env is refused: the token ends %s before the --deadline of %s, and in a variable it cannot be renewed; take a shorter deadline, a longer --ttl if the audience allows it, or the file of %s",
			short.Round(time.Second), r.Task.Deadline, EnvTokenFile)
	}
	r.gifts.set(r.Env, token.Secret())
	return nil
}

// giveInput puts a pipe in the place of the standard input, with the token before what comes from there.
func (r *run) giveInput(_ context.Context, token *sdk.Token) error {
	if !r.Stdin {
		return nil
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	g := &r.gifts
	g.files[0] = out
	g.opened = append(g.opened, out)
	// It ends with this process at the latest: what reads from a terminal cannot be called off.
	g.pump = func() {
		defer in.Close()
		if _, err := io.WriteString(in, token.Secret()+"\n"); err == nil {
			_, _ = io.Copy(in, r.Input)
		}
	}
	return nil
}

// giveFD puts the token on a descriptor. A pipe holds all of it, so nobody has to wait.
func (r *run) giveFD(_ context.Context, token *sdk.Token) error {
	if r.FD == 0 {
		return nil
	}
	if _, taken := inherited(r.FD); taken {
		return fmt.Errorf("--fd %d is open already; choose another", r.FD)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	g := &r.gifts
	g.opened = append(g.opened, out)
	_, err = io.WriteString(in, token.Secret()+"\n")
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	for fd := len(g.files); fd < r.FD; fd++ {
		file, _ := inherited(fd)
		g.files = append(g.files, file)
	}
	g.files = append(g.files, out)
	return nil
}

// inherited returns a descriptor that this process was started with, and that is for the command: one
// that is not closed by a start of a program, as all of this process's own are.
func inherited(fd int) (*os.File, bool) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return nil, false
	}
	return os.NewFile(uintptr(fd), "inherited"), true
}

// giveEndKey writes the key for whoever has to end the task from outside.
func (r *run) giveEndKey(context.Context, *sdk.Token) error {
	if r.EndKeyFile == "" {
		return nil
	}
	fresh, err := os.CreateTemp(filepath.Dir(r.EndKeyFile), ".errand-end-key-") // for its owner alone
	if err != nil {
		return fmt.Errorf("--end-key-file: %w", err)
	}
	_, err = fresh.WriteString(r.task.EndKey() + "\n")
	if err = errors.Join(err, fresh.Close()); err == nil {
		err = os.Rename(fresh.Name(), r.EndKeyFile)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("--end-key-file: %w", err), os.Remove(fresh.Name()))
	}
	r.gifts.endKey = r.EndKeyFile
	return nil
}
