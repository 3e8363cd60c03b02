package config

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// asNobody calls f without the right of root to read everything.
func asNobody(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()      // and never unlocks it: the thread ends with the goroutine
		_ = syscall.Setfsuid(65534) // who is not root reads no file of mode 0 either
		f()
	}()
	<-done
}

// TestUnopened: a file that is not there is to be written, and one that is there is to be made readable.
func TestUnopened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "errand.yaml")
	if _, err := Load(Sources{File: path}); err == nil || !strings.Contains(err.Error(), "write one with  errand config init --out "+path) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(path, []byte(good), 0); err != nil {
		t.Fatal(err)
	}
	asNobody(func() {
		_, err := Load(Sources{File: path})
		if err == nil || strings.Contains(err.Error(), "init") || !strings.Contains(err.Error(), "permission denied; the user that errand runs as (") {
			t.Errorf("a file that may not be read: %v", err)
		}
	})
}
