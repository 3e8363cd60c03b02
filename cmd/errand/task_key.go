package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/cmd/errand/internal/exec"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// maxEnvFile is the most that is read of a file with variables, in bytes.
const maxEnvFile = 64 << 10

// envFile is a new file that has what another process needs to end a task, as lines for a shell. Beside it is
// one with the trust bundle, and .pem behind its name.
type envFile struct {
	path   string
	f      *os.File
	values [][2]string
}

// newEnvFile makes both files before the task begins. When that cannot be, none begins. It is nil if none is
// wanted, or the request is only printed.
func newEnvFile(cmd *cobra.Command, a *asking, path string) (*envFile, error) {
	if path == "" || a.curl {
		return nil, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	e := a.environment()
	issuer, err := e.Issuer()
	if err != nil {
		return nil, usage(cmd, "--env-file is for whoever ends the task at the public listener: %w", err)
	}
	broker, err := e.BrokerID()
	if err != nil {
		return nil, inUsage(cmd, err)
	}
	var pem []byte
	if err := a.open(cmd, func(c *api.Client) (err error) { pem, err = c.Bundle(broker); return err }); err != nil {
		return nil, err
	}
	f, err := newSecret(cmd, path)
	if err != nil {
		return nil, err
	}
	if err := newBundle(cmd, path+".pem", pem); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return &envFile{path: path, f: f, values: [][2]string{
		{api.EnvIssuer, issuer}, {sdk.EnvBrokerID, broker.String()}, {api.EnvBundleFile, path + ".pem"},
	}}, nil
}

// newBundle makes the file that decides to whom the end key is sent, and so takes nobody else's.
func newBundle(cmd *cobra.Command, path string, pem []byte) error {
	f, err := newSecret(cmd, path)
	if err != nil {
		return err
	}
	_, err = f.Write(pem)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("no file for the trust bundle: %w", err), os.Remove(path))
	}
	return nil
}

// newSecret makes a file for its owner alone, and never one in the place of another.
func newSecret(cmd *cobra.Command, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, usage(cmd, "the file %s is there already: it may have what ends a task that still runs, and is not overwritten; name a new one", path)
	}
	if err != nil {
		return nil, fmt.Errorf("no file for the end key: %w", err)
	}
	return f, nil
}

// close writes what there is to know of the task, and takes the files away if none has begun.
func (e *envFile) close(begun wire.BeginResponse, failed error) error {
	if e == nil {
		return failed
	}
	if failed == nil {
		for _, v := range append([][2]string{
			{exec.EnvTaskID, begun.Task.ID}, {api.EnvWorkload, begun.Task.Workload}, {api.EnvEndKey, begun.EndKey},
		}, e.values...) {
			if _, err := fmt.Fprintf(e.f, "%s=%s\n", v[0], shellWord(v[1])); err != nil {
				failed = fmt.Errorf("%s has begun, and its end key could not be written: %w; end it with  errand task end %s", begun.Task.ID, err, begun.Task.ID)
				break
			}
		}
	}
	if failed = errors.Join(failed, e.f.Close()); failed != nil {
		failed = errors.Join(failed, os.Remove(e.path), os.Remove(e.path+".pem"))
	}
	return failed
}

// shellWord quotes only what needs it: not everything that reads such files is a shell.
func shellWord(s string) string {
	if strings.ContainsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-/:@%+", c))
	}) {
		return api.Quote(s)
	}
	return s
}

// readEnvFile reads what close has written.
func readEnvFile(path string) (map[string]string, error) {
	text, err := api.ReadFile(path, maxEnvFile)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if quoted, is := strings.CutPrefix(value, "'"); is {
			value = strings.ReplaceAll(strings.TrimSuffix(quoted, "'"), `'\''`, "'")
		}
		if ok && strings.HasPrefix(name, "ERRAND_") {
			values[name] = value
		}
	}
	if values[exec.EnvTaskID] == "" || values[api.EnvEndKey] == "" {
		return nil, errors.New(path + " is no file that errand task begin --env-file has written")
	}
	return values, nil
}

// ending is how a task ends: by the workload, or by whoever has its end key.
type ending struct {
	asking
	keyFile, envFile string
	values           map[string]string // of envFile
	wait             time.Duration     // for the verifiers
	alone            bool              // it was the end key alone that has ended it
}

// tell says what else there is to know about an end.
func (e *ending) tell(talk io.Writer, asked wire.EndRequest, r wire.Receipt) {
	if r.State != asked.Outcome {
		fmt.Fprintf(talk, "errand: %s had ended before, at %s: %s\n", r.Task, r.EndedAt.UTC().Format(time.RFC3339), r.State)
	}
	if !r.Durable {
		fmt.Fprintln(talk, "errand: the broker cannot reach its store now: the end is in force, and it writes it down when it can")
	}
	for _, line := range propagation(r.Propagation) {
		fmt.Fprintln(talk, "errand: "+line)
	}
	switch {
	case e.wait == 0 || r.Propagation != nil:
	case e.alone:
		fmt.Fprintln(talk, "errand: --wait was left out: an end key alone ends the task at the public listener, where nobody waits")
	default:
		fmt.Fprintln(talk, "errand: the broker cannot say now which verifiers have heard of the end; each hears of it within its bound, which  errand verifiers list  has")
	}
}

// task is the one that is meant. The file names it, or the command line.
func (e *ending) task(cmd *cobra.Command, args []string) (id string, err error) {
	switch {
	case e.envFile == "":
		return args[0], nil
	case e.curl:
		return "", usage(cmd, "--curl prints no end key, which is what --env-file ends the task by: leave one of them out")
	}
	if e.values, err = readEnvFile(e.envFile); err != nil {
		return "", usage(cmd, "--env-file: %w", err)
	}
	return e.values[exec.EnvTaskID], oneTask(cmd, []string{e.values[exec.EnvTaskID]})
}

// key is the end key, and "" for none.
func (e *ending) key(cmd *cobra.Command) (string, error) {
	if e.keyFile == "" {
		return e.values[api.EnvEndKey], nil
	}
	key, err := readEndKey(e.keyFile)
	if err != nil {
		return "", usage(cmd, "the end key: %w", err)
	}
	return key, nil
}

// environment has what the file says over what the process has.
func (e *ending) environment() api.Environment {
	all := e.asking.environment()
	for name, value := range e.values {
		if all.Flags[name] == "" {
			all.Flags[name] = value
		}
	}
	return all
}

// end ends a task as the workload, if there is an identity, and by its end key where there is none or it leads
// nowhere.
func (e *ending) end(cmd *cobra.Command, id string, body wire.EndRequest, receipt *wire.Receipt) ([]byte, error) {
	request := api.Request{Method: http.MethodPost, Path: pathOf(wire.PathTaskEnd, id), Wait: e.wait}
	key, err := e.key(cmd)
	if err != nil {
		return nil, err
	}
	if e.keyFile != "" {
		request.SecretMember, request.SecretFile = "end_key", e.keyFile
	}
	if key == "" || e.curl || e.environment().HasIdentity() {
		own := body
		if !e.curl {
			own.EndKey = key
		}
		request.Body = own
		text, err := e.send(cmd, request, receipt)
		if key == "" || !errors.Is(err, api.ErrNoIdentity) && !errors.Is(err, api.ErrUnreachable) {
			return text, err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "errand: %v\nerrand: trying with the end key alone\n", err)
	}
	e.alone, request.Wait, body.WaitSeconds = true, 0, 0 // there nobody waits, and asking for it is refused
	all := e.environment()
	if body.Workload, err = all.Workload(); err != nil {
		return nil, inUsage(cmd, err)
	}
	c, err := api.OpenPublic(all)
	if err != nil {
		return nil, inUsage(cmd, err)
	}
	request.Body, request.EndKey = body, key
	text, err := e.sendOn(cmd, c, request, receipt)
	return text, errors.Join(err, c.Close())
}
