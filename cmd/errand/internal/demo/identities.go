package demo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/errandhq/errand/broker/devmode"
)

// Identities serves nothing but a Workload API: a socket for each of some names, for brokers and
// workloads that are run by themselves. It calls ready once they can be used, and returns when ctx
// ends. Anybody's name may be among them, the broker's too.
func Identities(ctx context.Context, dir string, names []string, ready func(Description)) error {
	ca, err := devmode.NewCA(TrustDomain, devmode.Options{})
	if err != nil {
		return err
	}
	l := &Local{dir: dir, api: devmode.NewWorkloadAPI(ca, dir, time.Hour)}
	defer l.api.Close()
	l.Sockets = map[string]string{}
	for i, name := range names {
		if err := checkName(name, names[:i]); err != nil {
			return err
		}
		if l.Sockets[name], err = l.api.Add(id(name)); err != nil {
			return err
		}
	}
	if err := l.describe(dir); err != nil {
		return err
	}
	defer os.Remove(filepath.Join(dir, descriptionFile))
	ready(l.Description)
	if err := l.api.Run(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
