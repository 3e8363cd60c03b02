package exec

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk"
)

// Exit codes that are not the command's own. A command that a signal has killed is 128 and its number.
const (
	CodeEnded         = 124 // the task was revoked, has lapsed or met its deadline
	CodeFailed        = 125 // errand could not do its part, and the command did not run
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

const (
	// DefaultGrace is how long a command has between SIGTERM and SIGKILL, unless somebody says otherwise.
	DefaultGrace = 10 * time.Second
	// MaxAudiences bounds Config.Asks.
	MaxAudiences = 16
	// maxTTL is the longest life that any policy gives a token.
	maxTTL = 15 * time.Minute
	// MaxFD is the highest file descriptor that a token can be put on.
	MaxFD = 255
)

// The variables of what a task is to be a part of. EnvTaskID has the task that the command runs in, EnvTaskHandle
// the handle of a delegation, which the command does not get, since it is good for one task.
const (
	EnvTaskID     = "ERRAND_TASK_ID"
	EnvTaskHandle = "ERRAND_TASK_HANDLE"
)

// OnEnd is what becomes of the command when its task ends first.
type OnEnd string

// The choices.
const (
	Terminate OnEnd = "term"   // SIGTERM, and SIGKILL after the grace; without one, Kill
	Kill      OnEnd = "kill"   // SIGKILL
	Ignore    OnEnd = "ignore" // it goes on without tokens
)

// Ask is what the command needs at one audience.
type Ask struct {
	Audience string
	Scopes   []string
}

// Config says what to run, inside which task, and how the command gets its tokens.
type Config struct {
	Command []string      // the program and its arguments; no shell is involved
	Task    sdk.TaskSpec  // Audiences and Scopes are those of Asks
	Asks    []Ask         // 1 to 16; the first is the one that variables without a name are about
	Join    sdk.Handle    // the task is a part of another workload's, by this; "" for none
	Adopt   string        // the ID of a task that is there already, in the place of a new one; "" for none
	TTL     time.Duration // of tokens, at most; what the audience has when zero, and Task.Deadline with Env

	NoFiles    bool   // no folder
	NoKey      bool   // no certificate and key in the folder
	Curl       bool   // a file for curl --config in the folder
	Serve      bool   // an endpoint on loopback
	FD         int    // the token, once, on this file descriptor; none when zero
	Stdin      bool   // the token as the first line of the standard input
	Env        string // the token in this variable; needs a Task.Deadline that the token lives to see
	EndKeyFile string // where to write the task's end key while the command runs

	OnEnd OnEnd         // Terminate when empty
	Grace time.Duration // of Terminate; SIGKILL comes at once when zero

	Input   *os.File  // what follows the token on the standard input; os.Stdin when nil
	Stderr  io.Writer // for what errand itself has to say
	Options []sdk.Option
}

// Check fills in the defaults and refuses what makes no sense, in the words of errand's flags. Run does so,
// too.
func (c *Config) Check() error {
	if c.OnEnd == "" {
		c.OnEnd = Terminate
	}
	if c.Env != "" && c.TTL == 0 {
		c.TTL = min(c.Task.Deadline, maxTTL)
	}
	once := c.FD != 0 || c.Stdin || c.Env != ""
	if err := c.checkTask(); err != nil {
		return err
	}
	switch {
	case len(c.Asks) == 0:
		return errors.New("--audience is missing: name the server that the token is for, as --audience orders --scope orders:read")
	case len(c.Asks) > MaxAudiences:
		return fmt.Errorf("%d audiences; name %d at most", len(c.Asks), MaxAudiences)
	case c.OnEnd != Terminate && c.OnEnd != Kill && c.OnEnd != Ignore:
		return fmt.Errorf("--on-revoke is %q; use term, kill or ignore", c.OnEnd)
	case c.Grace < 0:
		return fmt.Errorf("--grace is %s; it must not be less than nothing", c.Grace)
	case once && len(c.Asks) > 1:
		return errors.New("--fd, --stdin and --env give one token; name one audience, or read the files")
	case c.FD != 0 && (c.FD < 3 || c.FD > MaxFD):
		return fmt.Errorf("--fd is %d; use 3 to %d", c.FD, MaxFD)
	case strings.ContainsAny(c.Env, "=\x00"):
		return fmt.Errorf("--env is %q; give the name of a variable", c.Env)
	case c.Env != "" && c.Task.Deadline == 0:
		return errors.New("--env needs a --deadline: a token in a variable is never renewed, so the task must be over before the token is")
	case c.NoFiles && (c.Curl || c.NoKey):
		return errors.New("--no-files leaves nothing for --curl-config and --no-key to be about")
	}
	return c.checkAsks()
}

func (c *Config) checkTask() error {
	own := c.Task.Name != "" || c.Task.Purpose != "" || c.Task.Lease != 0 || c.Task.Deadline != 0 || c.Task.Presence || c.Join != "" ||
		c.Task.Ref != sdk.Ref{} || len(c.Task.Labels) > 0 || c.Task.Ticket != ""
	switch {
	case len(c.Command) == 0 || c.Command[0] == "":
		return errors.New("there is no command; put it behind --")
	case c.Adopt != "" && own:
		return errors.New("--adopt takes the task as it has begun: --task, --purpose, --lease, --deadline, --presence, --ref, --label, --ticket and --join are for a new one")
	case c.Adopt != "":
		return nil
	case c.Task.Name == "":
		return errors.New("--task is missing: name the kind of work, as nightly-export")
	case c.Task.Purpose == "":
		return errors.New("--purpose is missing: say why, for the audit log")
	}
	return nil
}

func (c *Config) checkAsks() error {
	c.Task.Audiences, c.Task.Scopes = nil, nil
	seen := map[string]bool{}
	for _, ask := range c.Asks {
		switch {
		case ask.Audience == "":
			return errors.New("an --audience is empty; name the server that the token is for")
		case seen[ask.Audience]:
			return fmt.Errorf("--audience %s is there twice; give all of its scopes behind the first", ask.Audience)
		case len(ask.Scopes) == 0:
			return fmt.Errorf("--scope is missing for %s; name what the command may do there, as --audience orders --scope orders:read", ask.Audience)
		case len(folderOf(ask.Audience)) > maxFolderName:
			return fmt.Errorf("--audience %s is too long for the name of a folder; use --no-files", ask.Audience)
		}
		seen[ask.Audience] = true
		c.Task.Audiences = append(c.Task.Audiences, ask.Audience)
		c.Task.Scopes = append(c.Task.Scopes, ask.Scopes...)
	}
	slices.Sort(c.Task.Scopes)
	c.Task.Scopes = slices.Compact(c.Task.Scopes) // two audiences may know the same one
	return nil
}

// maxFolderName leaves room for a number within what file systems allow, in bytes.
const maxFolderName = 200

// folderOf makes a name for a folder of an audience: itself, unless it has characters that a path
// gives a meaning, and those are written as in a URL.
func folderOf(audience string) string {
	name := url.PathEscape(audience)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	return name
}
