package main

import (
	"errors"
	"os"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/cmd/errand/internal/exec"
	"github.com/errandhq/errand/sdk"
	"github.com/spf13/cobra"
)

const execLong = `exec begins a task, runs CMD with a token for each audience, and ends the task when CMD exits: as
completed when it exits with 0, as failed otherwise, as canceled when errand was told to stop. The tokens
are dead then at every verifier. Which workload it is, and which broker to ask, is in the environment:
SPIFFE_ENDPOINT_SOCKET or ERRAND_IDENTITY_DIR, ERRAND_BROKER_URL and ERRAND_BROKER_ID.

  errand exec --task nightly-export --purpose "FIN-212" --audience orders --scope orders:read -- ./export.sh

No shell is involved; write  -- sh -c '...'  for one. A --scope belongs to the --audience before it.

CMD finds its tokens in files, and their names in variables:

  ERRAND_TOKEN_FILE     the token of the first audience; read it each time that you need it
  ERRAND_CERT_FILE      the workload's certificate, which a token is bound to as a rule
  ERRAND_KEY_FILE       THE WORKLOAD'S OWN PRIVATE KEY. Whoever reads it can be the workload until the
                        certificate expires, beyond this task. --no-key leaves both out
  ERRAND_BUNDLE_FILE    the authorities that the server's certificate is from
  ERRAND_TOKEN_DIR      the folder of these, ERRAND_TOKEN_DIRS a folder with one for each audience
  ERRAND_TASK_ID        the task

Only this user can read them; they are in memory if the system has a place for that ($XDG_RUNTIME_DIR,
/dev/shm). They are replaced ahead of their end, all at once: the folder is a link to a new one. What is
read through one  dir=$(readlink -f "$ERRAND_TOKEN_DIR")  belongs together. No token is in the environment.

Other ways to give it, besides the files, or with --no-files instead of them:

  --curl-config   ERRAND_CURL_CONFIG, for  curl --config "$ERRAND_CURL_CONFIG" URL
  --serve         curl -H "Authorization: Bearer $ERRAND_TOKEN_AUTH" "$ERRAND_TOKEN_URL?audience=A&scope=S"
                  answers with JSON, for any of the audiences and scopes above; 64 connections at most
  --fd, --stdin   once
  --env           once, and only if the token lives to see the --deadline

The exit code is CMD's own, 128 and the number of the signal that has killed it, 124 when the task ended
first, 125 when errand could not do its part, 126 when CMD cannot be executed, and 127 when there is none.

When the task ends first (it was revoked, its deadline passed, the broker was out of reach for two thirds
of the lease), the files go at once, and CMD and what it has started get SIGTERM and, after --grace,
SIGKILL. With --grace 0s or --on-revoke kill that is all that they get, and with --on-revoke ignore CMD
goes on without tokens. An end that somebody else has made is noticed at once when the task has lived for
a second, or else, and where the broker's stream of events does not get through or another replica has
ended a task without live tokens, within a third of the lease. When errand is killed itself, Linux kills
CMD; on macOS CMD goes on, with tokens that die with the lease, or within two seconds with --presence.
What CMD leaves running behind it goes on without a task.

SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on. Under a terminal CMD is in errand's own
process group, so what is typed there reaches it directly; while Ctrl-Z has stopped both, the lease runs.

Inside another errand exec, whose ERRAND_TASK_ID is in the environment, the task is a part of that one: it
may have no more, and ends with it. --no-parent begins one that has nothing to do with it, as it must be for
another workload, another broker, or for what the task outside may not have.

With --join, or a handle in ERRAND_TASK_HANDLE, the task is a part of another workload's, which has made the
handle with errand task delegate. CMD does not get the handle, which is good for one task. Prefer the
variable: other users of the machine can see a command line.

With --adopt there is no new task: errand keeps one alive that another command of this workload has begun,
as errand task begin, and ends it when CMD exits. Whoever kept it alive before learns that, and keeps off it.

--ref says what the task is in another system. Whoever watches that, as errand-k8s the Pods and Jobs of a
cluster, can tell the broker that it has ended, and the task ends. A Pod names itself by its UID, which the
downward API gives it:

  errand exec --ref "k8s/pod:$POD_UID" --label env=prod --task nightly-export ...

By --label, up to 16 of them, and by --ref, operators find the task. --ticket is in the audit log.`

// asks collects --audience and --scope in the order that they come in.
type asks struct {
	list  []exec.Ask
	early []string // scopes before the first audience
}

func (a *asks) addAudience(name string) error {
	a.list = append(a.list, exec.Ask{Audience: name, Scopes: a.early})
	a.early = nil
	return nil
}

func (a *asks) addScope(text string) error {
	scopes := strings.Fields(text)
	if len(scopes) == 0 {
		return errors.New("it is empty")
	}
	if len(a.list) == 0 {
		a.early = append(a.early, scopes...)
		return nil
	}
	last := &a.list[len(a.list)-1]
	last.Scopes = append(last.Scopes, scopes...)
	return nil
}

func newExec() *cobra.Command {
	config := exec.Config{}
	var named asks
	var about attributes
	var url, onRevoke, join string
	var startup time.Duration
	var noParent bool
	cmd := &cobra.Command{
		Use:   "exec [flags] --task NAME --purpose TEXT --audience A --scope S -- CMD...",
		Short: "Run a command inside a task",
		Long:  execLong,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 {
				return ownFailure(usage(cmd, "put -- between errand's flags and the command, as in  errand exec --task export ... -- ./export.sh --its-own-flag"))
			}
			config.Command, config.Asks, config.OnEnd = args, named.list, exec.OnEnd(onRevoke)
			if err := about.spec(cmd, &config.Task); err != nil {
				return ownFailure(err)
			}
			if err := above(cmd, &config, join, noParent); err != nil {
				return ownFailure(err)
			}
			return runExec(cmd, config, url, startup)
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return ownFailure(usage(cmd, "%w", err)) })
	flags := cmd.Flags()
	flags.SetInterspersed(false) // the command's flags are its own
	flags.StringVar(&config.Task.Name, "task", "", "the kind of work, always the same for the same work, as nightly-export")
	flags.StringVar(&config.Task.Purpose, "purpose", "", "why, for the audit log")
	flags.Func("audience", "the server that a token is for; repeat it for more, each with its scopes", named.addAudience)
	flags.Func("scope", "what CMD may do there; repeat it for more", named.addScope)
	flags.DurationVar(&config.Task.Lease, "lease", 0, "the task ends when errand is silent for so long, 5s to 10m (default 30s)")
	flags.BoolVar(&config.Task.Presence, "presence", false, "the task ends within two seconds when errand is killed or loses the broker")
	flags.DurationVar(&config.Task.Deadline, "deadline", 0, "the task ends after so long, whatever happens, 5s to 24h (default 1h)")
	flags.DurationVar(&config.TTL, "ttl", 0, "the most that a token lives (default what the audience has)")
	about.flags(cmd)
	flags.BoolVar(&noParent, "no-parent", false, "do not make the task a part of what ERRAND_TASK_ID or ERRAND_TASK_HANDLE names")
	flags.StringVar(&join, "join", "", "the handle of a delegation, by which the task is a part of another workload's (default ERRAND_TASK_HANDLE)")
	flags.StringVar(&config.Adopt, "adopt", "", "run CMD in this task, which another command has begun, in the place of a new one")
	flags.BoolVar(&config.NoFiles, "no-files", false, "make no folder")
	flags.BoolVar(&config.NoKey, "no-key", false, "leave certificate and private key out of the folder")
	flags.BoolVar(&config.Curl, "curl-config", false, "put a file for curl --config into the folder")
	flags.BoolVar(&config.Serve, "serve", false, "answer requests for tokens on loopback")
	flags.IntVar(&config.FD, "fd", 0, "put the token on this file descriptor, 3 to 255")
	flags.BoolVar(&config.Stdin, "stdin", false, "put the token before the standard input, as its first line")
	flags.StringVar(&config.Env, "env", "", "put the token into this variable")
	flags.StringVar(&config.EndKeyFile, "end-key-file", "", "write a key to this file that can only end the task; it goes with the task")
	flags.StringVar(&onRevoke, "on-revoke", "term", "what CMD gets when the task ends first: term, kill, or ignore")
	flags.DurationVar(&config.Grace, "grace", exec.DefaultGrace, "the time between SIGTERM and SIGKILL then; 0s is --on-revoke kill")
	flags.DurationVar(&startup, "startup-timeout", sdk.DefaultStartupTimeout, "how long to wait for an identity and the broker")
	brokerURLFlag(cmd, &url)
	completeCeiling(cmd)
	return cmd
}

// above says what the task is to be a part of.
func above(cmd *cobra.Command, config *exec.Config, join string, noParent bool) (err error) {
	from := "--join"
	switch {
	case config.Adopt != "" && join != "":
		return usage(cmd, "--adopt and --join exclude each other: --join begins a task, and --adopt takes one that is there")
	case config.Adopt != "" && !strings.HasPrefix(config.Adopt, "tsk_"):
		return usage(cmd, "--adopt is %q; name the task by its ID, as tsk_00gybxqbdwiuxgoxp7eqvjcyoumu", config.Adopt)
	case join == "" && (noParent || config.Adopt != ""):
		return nil
	case join == "":
		join, from = os.Getenv(exec.EnvTaskHandle), exec.EnvTaskHandle
	}
	if join == "" {
		config.Task.Parent = os.Getenv(exec.EnvTaskID)
		return nil
	}
	config.Join, err = handleIn(cmd, from, join)
	return err
}

func runExec(cmd *cobra.Command, config exec.Config, url string, startup time.Duration) error {
	if err := config.Check(); err != nil {
		return ownFailure(usage(cmd, "%w", err))
	}
	env := api.Environment{Getenv: os.Getenv, Flags: map[string]string{sdk.EnvBrokerURL: url}}
	urls, err := env.BrokerURLs()
	if err != nil {
		return ownFailure(usage(cmd, "%w", err))
	}
	id, err := env.BrokerID()
	if err != nil {
		return ownFailure(usage(cmd, "%w", err))
	}
	config.Stderr = cmd.ErrOrStderr()
	config.Options = []sdk.Option{sdk.WithBroker(urls...), sdk.WithBrokerID(id), sdk.WithStartupTimeout(startup)}
	code, err := exec.Run(cmd.Context(), config)
	switch {
	case err == nil && code == exitOK:
		return nil
	case err == nil:
		err = errFailed // there is nothing more to say
	}
	return codedError{code, err}
}

// ownFailure tells it from what the command itself may exit with.
func ownFailure(err error) error { return codedError{exec.CodeFailed, err} }
