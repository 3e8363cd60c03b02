//go:build unix

package exec

import (
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk"
)

func good() Config {
	return Config{
		Command: []string{"true"}, Task: sdk.TaskSpec{Name: "export", Purpose: "FIN-212"},
		Asks: []Ask{{"orders", []string{"orders:read"}}},
	}
}

// manyAsks are n audiences.
func manyAsks(n int) (list []Ask) {
	for i := range n {
		list = append(list, Ask{strings.Repeat("a", i+1), []string{"s"}})
	}
	return list
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string // "" is no error
	}{
		"good":                   {func(*Config) {}, ""},
		"no command":             {func(c *Config) { c.Command = nil }, "no command"},
		"no task":                {func(c *Config) { c.Task.Name = "" }, "--task is missing"},
		"no purpose":             {func(c *Config) { c.Task.Purpose = "" }, "--purpose is missing"},
		"a task that is there":   {func(c *Config) { c.Task, c.Adopt = sdk.TaskSpec{}, "tsk_x" }, ""},
		"that, and a new one":    {func(c *Config) { c.Adopt = "tsk_x" }, "--adopt takes the task as it has begun"},
		"that, for less":         {func(c *Config) { c.Task, c.Adopt = sdk.TaskSpec{Deadline: time.Minute}, "tsk_x" }, "--adopt takes"},
		"that, by a handle":      {func(c *Config) { c.Task, c.Adopt, c.Join = sdk.TaskSpec{}, "tsk_x", "hdl_x.y" }, "--adopt takes"},
		"that, with a ref":       {func(c *Config) { c.Task, c.Adopt = sdk.TaskSpec{Ref: sdk.Ref{Kind: "k8s/pod", ID: "u"}}, "tsk_x" }, "--adopt takes"},
		"that, with a label":     {func(c *Config) { c.Task, c.Adopt = sdk.TaskSpec{Labels: map[string]string{"env": "prod"}}, "tsk_x" }, "--adopt takes"},
		"that, with a ticket":    {func(c *Config) { c.Task, c.Adopt = sdk.TaskSpec{Ticket: "CHG-1"}, "tsk_x" }, "--adopt takes"},
		"by a handle":            {func(c *Config) { c.Join = "hdl_x.y" }, ""},
		"a handle and no name":   {func(c *Config) { c.Join, c.Task.Name = "hdl_x.y", "" }, "--task is missing"},
		"no audience":            {func(c *Config) { c.Asks = nil }, "--audience is missing"},
		"empty audience":         {func(c *Config) { c.Asks[0].Audience = "" }, "--audience is empty"},
		"audience twice":         {func(c *Config) { c.Asks = append(c.Asks, c.Asks[0]) }, "twice"},
		"no scope":               {func(c *Config) { c.Asks[0].Scopes = nil }, "--scope is missing for orders"},
		"most audiences":         {func(c *Config) { c.Asks = manyAsks(MaxAudiences) }, ""},
		"too many audiences":     {func(c *Config) { c.Asks = manyAsks(MaxAudiences + 1) }, "17 audiences"},
		"longest audience":       {func(c *Config) { c.Asks[0].Audience = strings.Repeat("a", maxFolderName) }, ""},
		"too long audience":      {func(c *Config) { c.Asks[0].Audience = strings.Repeat("a", maxFolderName+1) }, "too long"},
		"what on revoke":         {func(c *Config) { c.OnEnd = "maybe" }, `--on-revoke is "maybe"`},
		"no grace":               {func(c *Config) { c.Grace = 0 }, ""},
		"negative grace":         {func(c *Config) { c.Grace = -1 }, "--grace"},
		"low fd":                 {func(c *Config) { c.FD = 2 }, "--fd is 2"},
		"first fd":               {func(c *Config) { c.FD = 3 }, ""},
		"last fd":                {func(c *Config) { c.FD = MaxFD }, ""},
		"high fd":                {func(c *Config) { c.FD = MaxFD + 1 }, "--fd is 256"},
		"fd for two":             {func(c *Config) { c.FD, c.Asks = 3, manyAsks(2) }, "name one audience"},
		"env without deadline":   {func(c *Config) { c.Env = "TOKEN" }, "--env needs a --deadline"},
		"env":                    {func(c *Config) { c.Env, c.Task.Deadline = "TOKEN", time.Minute }, ""},
		"env no name":            {func(c *Config) { c.Env, c.Task.Deadline = "A=B", time.Minute }, "name of a variable"},
		"files that are not":     {func(c *Config) { c.NoFiles, c.Curl = true, true }, "--no-files leaves nothing"},
		"no files, no key":       {func(c *Config) { c.NoFiles, c.NoKey = true, true }, "--no-files leaves nothing"},
		"only the endpoint":      {func(c *Config) { c.NoFiles, c.Serve = true, true }, ""},
		"input for two":          {func(c *Config) { c.Stdin, c.Asks = true, manyAsks(2) }, "name one audience"},
		"the command is a blank": {func(c *Config) { c.Command = []string{""} }, "no command"},
	} {
		t.Run(name, func(t *testing.T) {
			config := good()
			c.change(&config)
			err := config.Check()
			if got := errorText(err); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
