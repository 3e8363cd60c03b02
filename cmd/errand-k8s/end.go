package main

import (
	"fmt"
	"strings"

	"github.com/errandhq/errand/sdk"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Kinds of reference.
const (
	kindJob = "k8s/job"
	kindPod = "k8s/pod"
)

// maxReason bounds what the broker is told of why, in bytes; it takes 1024.
const maxReason = 512

// end is what the broker is told.
type end struct {
	ref     sdk.Ref
	outcome sdk.State
	reason  string
}

// endOf says how an object has ended, and false while it has not.
func endOf(object any) (end, bool) {
	switch o := object.(type) {
	case *batch.Job:
		for _, c := range o.Status.Conditions {
			switch {
			case c.Status != core.ConditionTrue:
			case c.Type == batch.JobComplete:
				return newEnd(kindJob, o, sdk.Completed, "complete"), true
			case c.Type == batch.JobFailed:
				return newEnd(kindJob, o, sdk.Failed, say("failed", c.Reason, c.Message)), true
			}
		}
	case *core.Pod:
		switch o.Status.Phase {
		case core.PodSucceeded:
			return newEnd(kindPod, o, sdk.Completed, "succeeded"), true
		case core.PodFailed:
			return newEnd(kindPod, o, sdk.Failed, say("failed", o.Status.Reason, o.Status.Message)), true
		}
	}
	return end{}, false
}

// newEnd names the object by its UID, which no other one ever has.
func newEnd(kind string, o meta.Object, outcome sdk.State, what string) end {
	reason := fmt.Sprintf("%s %s/%s: %s", kind, o.GetNamespace(), o.GetName(), what)
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	return end{ref: sdk.Ref{Kind: kind, ID: string(o.GetUID())}, outcome: outcome, reason: reason}
}

func say(what string, more ...string) string {
	for _, text := range more {
		if text != "" {
			what += ", " + text
		}
	}
	return what
}

// slim keeps what is looked at, so that a large cluster takes little memory.
func slim(object any) (any, error) {
	switch o := object.(type) {
	case *batch.Job:
		out := &batch.Job{ObjectMeta: slimMeta(o)}
		out.Status.Conditions = o.Status.Conditions
		return out, nil
	case *core.Pod:
		out := &core.Pod{ObjectMeta: slimMeta(o)}
		out.Status.Phase, out.Status.Reason, out.Status.Message = o.Status.Phase, o.Status.Reason, o.Status.Message
		return out, nil
	}
	return object, nil
}

func slimMeta(o meta.Object) meta.ObjectMeta {
	return meta.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion()}
}
