package main

import (
	"strings"
	"testing"

	"github.com/errandhq/errand/cmd/errand/internal/exec"
)

// TestAttributeMistakes are found before anybody is asked, and by both commands that begin a task.
func TestAttributeMistakes(t *testing.T) {
	for line, want := range map[string]string{
		"--ref ":                                 `--ref is ""; give the kind and the ID`,
		"--ref 4711":                             `--ref is "4711"; give the kind and the ID of what the task is elsewhere, as ci/run:4711.1`,
		"--ref k8s/pod:":                         `--ref is "k8s/pod:"; give the kind`,
		"--ref :4711":                            `--ref is ":4711"; give the kind`,
		"--ref k8s/pod:$(POD_UID)":               `--ref is "k8s/pod:$(POD_UID)", with a variable that Kubernetes does not know`,
		"--ref-url https://ci.example.org/r/1":   "--ref-url is where people look at what --ref names: give that, too",
		"--label env":                            `--label is "env"; give it as NAME=VALUE`,
		"--label =prod":                          `--label is "=prod"; give it as NAME=VALUE`,
		"--label ":                               `--label is ""; give it as NAME=VALUE`,
		"--label env=prod --label env=test":      `--label env has two values, "prod" and "test"; a task has one of them at most`,
		"--label a=1 --ref ci/run:1 --label b":   `--label is "b"`,
		"--ref ci/run --label a=1 --ticket INC-": `--ref is "ci/run"`,
	} {
		flags := strings.Split(line, " ")
		begin := append([]string{"task", "begin", "--task", "export", "--purpose", "p"}, flags...)
		if code, stdout, stderr := errand(begin...); code != exitUsage || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("errand task begin %s: %d %q %q", line, code, stdout, stderr)
		}
		run := append([]string{"exec", "--task", "export", "--purpose", "p", "--audience", "orders", "--scope", "orders:read"}, flags...)
		if code, stdout, stderr := errand(append(run, "--", "true")...); code != exec.CodeFailed || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("errand exec %s: %d %q %q", line, code, stdout, stderr)
		}
	}
}
