package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
)

// TestManifest: the cluster would take it, with every field known, and it asks for no more than is needed.
func TestManifest(t *testing.T) {
	text, err := os.ReadFile("../../deploy/kubernetes/errand-k8s.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	kinds := map[string]bool{}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		object, kind, err := decoder.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		kinds[kind.Kind] = true
		switch o := object.(type) {
		case *rbac.ClusterRole:
			for _, rule := range o.Rules {
				if strings.Join(rule.Verbs, " ") != "get list watch" || len(rule.Resources) != 1 || rule.Resources[0] != "jobs" && rule.Resources[0] != "pods" {
					t.Errorf("it may %v", rule)
				}
			}
		case *apps.Deployment:
			c := o.Spec.Template.Spec.Containers[0]
			if _, err := parse(c.Args, t.Output()); err != nil {
				t.Error(err)
			}
			if c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" {
				t.Error("the probes are elsewhere")
			}
		}
	}
	if len(kinds) != 4 {
		t.Errorf("there are %v", kinds)
	}
}

// TestRecipe: the cluster would take it, and the Pod is one that is watched and has the variables that its command names.
func TestRecipe(t *testing.T) {
	text, err := os.ReadFile("../../deploy/recipes/kubernetes/nightly-export.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	object, _, err := decoder.Decode(text, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	o, err := parse(nil, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	watched, err := labels.Parse(o.selector)
	if err != nil {
		t.Fatal(err)
	}
	template := object.(*batch.CronJob).Spec.JobTemplate.Spec.Template
	if !watched.Matches(labels.Set(template.Labels)) {
		t.Errorf("%v is not watched", template.Labels)
	}
	c := template.Spec.Containers[0]
	if !slices.Contains(c.Command, "--ref="+kindPod+":$(POD_UID)") {
		t.Errorf("the command is %q", c.Command)
	}
	if !slices.ContainsFunc(c.Env, func(e core.EnvVar) bool {
		return e.Name == "POD_UID" && e.ValueFrom != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.uid"
	}) {
		t.Error("POD_UID is not the Pod's UID")
	}
}
