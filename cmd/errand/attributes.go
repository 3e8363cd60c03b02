package main

import (
	"strings"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// attributes are the flags of what a task says about itself beside its name and purpose, for whoever looks for it or
// sees from outside that it has ended. The bounds are the broker's.
type attributes struct {
	ref, url string
	labels   []string
	ticket   string
}

func (a *attributes) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.ref, "ref", "", "`KIND:ID` of what the task is elsewhere, as k8s/pod:UID or ci/run:4711.1, whose source may say that it has ended")
	f.StringVar(&a.url, "ref-url", "", "the `URL` where people look at that")
	f.StringArrayVar(&a.labels, "label", nil, "`NAME=VALUE` by which operators find the task, as env=prod; repeat for more, 16 at most")
	f.StringVar(&a.ticket, "ticket", "", "a change or incident, for the audit log")
	for _, name := range []string{"ref", "ref-url", "label", "ticket"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // the flag is there
	}
}

// spec puts what the flags have into a task of the SDK.
func (a *attributes) spec(cmd *cobra.Command, task *sdk.TaskSpec) (err error) {
	task.Ticket = a.ticket
	task.Ref, task.Labels, err = a.resolve(cmd)
	return err
}

// request puts it into a request.
func (a *attributes) request(cmd *cobra.Command, body *wire.BeginRequest) error {
	ref, labels, err := a.resolve(cmd)
	body.Ticket, body.Labels = a.ticket, labels
	if ref != (sdk.Ref{}) {
		body.Ref = (*wire.Ref)(&ref)
	}
	return err
}

// resolve reads what the flags have.
func (a *attributes) resolve(cmd *cobra.Command) (ref sdk.Ref, labels map[string]string, err error) {
	kind, id, ok := strings.Cut(a.ref, ":")
	switch {
	case !cmd.Flag("ref").Changed && a.url != "":
		return ref, nil, usage(cmd, "--ref-url is where people look at what --ref names: give that, too, or leave it out")
	case cmd.Flag("ref").Changed && (!ok || kind == "" || id == ""):
		return ref, nil, usage(cmd, "--ref is %q; give the kind and the ID of what the task is elsewhere, as ci/run:4711.1", a.ref)
	case strings.Contains(id, "$("): // it would be the same for all
		return ref, nil, usage(cmd, "--ref is %q, with a variable that Kubernetes does not know: it must be in the container's env, as  POD_UID  from the field  metadata.uid", a.ref)
	}
	labels, err = parseLabels(cmd, a.labels)
	return sdk.Ref{Kind: kind, ID: id, URL: a.url}, labels, err
}

// parseLabels reads those of a flag --label, and is nil for none.
func parseLabels(cmd *cobra.Command, list []string) (labels map[string]string, err error) {
	for _, text := range list {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, usage(cmd, "--label is %q; give it as NAME=VALUE", text)
		}
		if other, there := labels[name]; there && other != value {
			return nil, usage(cmd, "--label %s has two values, %q and %q; a task has one of them at most", name, other, value)
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[name] = value
	}
	return labels, nil
}
