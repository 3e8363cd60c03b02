package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// orders that a worker gets, on the first line of its standard input.
type workerOrders struct {
	BrokerURL string        `json:"broker_url"`
	BrokerID  string        `json:"broker_id"`
	Socket    string        `json:"socket"`
	Lease     time.Duration `json:"lease"`
	Presence  bool          `json:"presence"`
}

// workerAnswer is what it says, on the first line of its standard output: a pipe to the tour and nobody else.
type workerAnswer struct {
	Task   string `json:"task"`
	Header string `json:"header"` // of a request with its token
}

// Work is the life of a worker: a process of the workload report that the tour has started, so that it can be
// killed. It reads its orders from in, begins a task, tells of it on out, and works until in ends, as it does
// with the process that holds the other end, whatever becomes of that.
func Work(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := bufio.NewReader(io.LimitReader(in, 64<<10))
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("this is a part of errand demo, which tells it what to do: %w", err)
	}
	var o workerOrders
	if err := json.Unmarshal(first, &o); err != nil {
		return err
	}
	brokerID, err := spiffeid.FromString(o.BrokerID)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		cancel()
	}()
	client, err := sdk.New(ctx, sdk.WithBroker(o.BrokerURL), sdk.WithBrokerID(brokerID),
		sdk.WithIdentity(sdk.FromWorkloadAPI(o.Socket, "")), sdk.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = client.Close(closing)
	}()
	return client.Do(ctx, sdk.TaskSpec{
		Name: "monthly-export", Purpose: "try to crash", Audiences: []string{OrdersName}, Scopes: []string{"orders:read"},
		Lease: o.Lease, Presence: o.Presence,
	}, func(ctx context.Context, task *sdk.Task) error {
		token, err := task.Token(ctx, sdk.TokenRequest{Audience: OrdersName, Scopes: []string{"orders:read"}})
		if err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(workerAnswer{task.ID(), token.Header()}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
}

// worker is such a process, as the tour sees it.
type worker struct {
	workerAnswer
	process *exec.Cmd
	leash   io.Closer // its standard input
}

// startWorker returns when the worker has its token.
func startWorker(ctx context.Context, argv []string, o workerOrders) (_ *worker, err error) {
	w := &worker{process: exec.Command(argv[0], argv[1:]...)}
	said := bounded{limit: 4 << 10}
	w.process.Stderr = &said
	in, err := w.process.StdinPipe()
	if err != nil {
		return nil, err
	}
	w.leash = in
	out, err := w.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.process.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.kill() // and all that it says has been read
			if text := strings.TrimSpace(said.String()); text != "" {
				err = errors.New(text)
			}
			err = fmt.Errorf("the process of the workload: %w", err)
		}
	}()
	defer context.AfterFunc(ctx, func() { _ = w.process.Process.Kill() })()
	if err := json.NewEncoder(in).Encode(o); err != nil {
		return nil, err
	}
	return w, json.NewDecoder(io.LimitReader(out, 64<<10)).Decode(&w.workerAnswer)
}

// kill is SIGKILL, and returns when the process is dead.
func (w *worker) kill() {
	_ = w.process.Process.Kill()
	_ = w.process.Wait() // it says that it was killed
	_ = w.leash.Close()
}

// bounded keeps the beginning of what is written.
type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.limit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
