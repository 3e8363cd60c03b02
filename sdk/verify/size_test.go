package verify_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// maxProgram is what a stripped program that only has the verifier may have, in bytes.
const maxProgram = 8_000_000

// TestAProgramWithTheVerifierIsSmall builds one.
func TestAProgramWithTheVerifierIsSmall(t *testing.T) {
	program := filepath.Join(t.TempDir(), "small")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "./testdata/small")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	stat := must(os.Stat(program))(t)
	if stat.Size() >= maxProgram {
		t.Errorf("it has %d bytes; it must have less than %d", stat.Size(), maxProgram)
	}
	t.Logf("%d bytes", stat.Size())
}
