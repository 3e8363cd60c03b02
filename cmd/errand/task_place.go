package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/cmd/errand/internal/exec"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// place is where a task begins: by itself, or below another one.
type place struct {
	parent, join string
	alone        bool
	inherited    bool // join is what the environment has
}

func (p *place) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.parent, "parent", "", "the task that it is a part of, by its ID")
	f.StringVar(&p.join, "join", "", "the handle of a delegation, by which it is a part of another workload's task (default "+exec.EnvTaskHandle+")")
	f.BoolVar(&p.alone, "no-parent", false, "do not make the task a part of what "+exec.EnvTaskHandle+" names")
}

// request begins a task there.
func (p *place) request(cmd *cobra.Command, body wire.BeginRequest) (api.Request, error) {
	from := "--join"
	switch handle := os.Getenv(exec.EnvTaskHandle); {
	case p.parent != "" && p.join != "":
		return api.Request{}, usage(cmd, "--parent and --join exclude each other: a task is a part of one")
	case p.alone && (p.parent != "" || p.join != ""):
		return api.Request{}, usage(cmd, "--no-parent begins a task that is a part of no other: leave it out, or --parent and --join")
	case p.parent != "":
		return api.Request{Method: http.MethodPost, Path: pathOf(wire.PathTaskChildren, p.parent), Body: body}, oneTask(cmd, []string{p.parent})
	case p.join == "" && !p.alone && handle != "":
		p.join, p.inherited, from = handle, true, exec.EnvTaskHandle
	}
	if p.join == "" {
		return api.Request{Method: http.MethodPost, Path: wire.PathTasks, Body: body}, nil
	}
	handle, err := handleIn(cmd, from, p.join)
	return api.Request{Method: http.MethodPost, Path: wire.PathJoins, Body: wire.JoinRequest{Handle: string(handle), BeginRequest: body}}, err
}

// about says what to do about a refusal of a handle that nobody has typed.
func (p *place) about(err error) error {
	var refused *api.Refusal
	if p.inherited && errors.As(err, &refused) {
		switch refused.Name() {
		case wire.ProblemHandleUsed, wire.ProblemHandleExpired, wire.ProblemNotDelegate, wire.ProblemTaskEnded:
			return fmt.Errorf("%w\nThe handle is in %s, and is good for one task; --no-parent begins one that does without it", err, exec.EnvTaskHandle)
		}
	}
	return err
}
