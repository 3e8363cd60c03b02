package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/demo"
)

// TestFirstHour runs the commands of sdk/README.md as they stand there, in one shell, against errand dev,
// and wants each block to print what the document shows after it.
func TestFirstHour(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "sdk", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := readBlocks(string(text))
	if len(blocks) < 15 || blocks[0].code != "go build -o errand ./cmd/errand\n./errand dev\n" {
		t.Fatalf("%d blocks, and the first is %q", len(blocks), blocks[0].code)
	}
	h := newHour(t)
	h.startDev(t)
	output := h.run(t, h.script(blocks[1:]))
	for i, b := range blocks[1:] {
		_, printed, _ := strings.Cut(output, mark(i))
		printed, _, _ = strings.Cut(printed, mark(i+1))
		if line := firstUnprinted(h.here(b.prints), printed); line != "" {
			t.Errorf("this has not printed %q:\n%s\nbut:\n%s", line, b.code, printed)
		}
	}
}

// block is some lines for a shell, and what the document says that they print.
type block struct {
	server       bool // runs on, in a shell of its own, until the next one
	code, prints string
}

func readBlocks(text string) (blocks []block) {
	fences := regexp.MustCompile("(?ms)^```([a-z ]*)\n(.*?)^```\n(```\n(.*?)^```\n)?")
	for _, m := range fences.FindAllStringSubmatch(text, -1) {
		if m[1] == "sh" || m[1] == "sh server" {
			blocks = append(blocks, block{m[1] == "sh server", m[2], m[4]})
		}
	}
	return blocks
}

// firstUnprinted is the first line of want that got does not have, in its order. An ellipsis is any text.
func firstUnprinted(want, got string) string {
	lines := strings.Split(got, "\n")
	for line := range strings.Lines(want) {
		line = strings.TrimSpace(line)
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + "$")
		for len(lines) > 0 && !pattern.MatchString(strings.TrimSpace(lines[0])) {
			lines = lines[1:]
		}
		if len(lines) == 0 {
			return line
		}
		lines = lines[1:]
	}
	return ""
}

func mark(i int) string { return fmt.Sprintf("\n=== block %d ===\n", i) }

// hour is a folder with the programs, a development broker, and an address for the servers, as the
// document's own may be in use.
type hour struct{ dir, root, addr string }

func newHour(t *testing.T) *hour {
	dir, err := os.MkdirTemp("", "errand-hour-") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "errand")); err != nil { // TestMain knows it by its name
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-race", "-o", dir, "./sdk/examples/...")
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return &hour{dir, top, l.Addr().String()}
}

// here is a text of the document, for this folder.
func (h *hour) here(text string) string {
	return strings.NewReplacer(
		"127.0.0.1:8082", h.addr,
		"go run ./sdk/examples/orders", "./orders -listen "+h.addr,
		"go run ./sdk/examples/echo", "./echo -listen "+h.addr,
		"go run ./sdk/examples/grpc/server", "./server -listen "+h.addr,
		"go run ./sdk/examples/grpc/client", "./client -orders "+h.addr,
		"go run ./sdk/examples/export", "./export",
		"go test ", "go -C "+h.root+" test -race ",
	).Replace(text)
}

// script has the blocks with a mark before the output of each.
func (h *hour) script(blocks []block) string {
	var b strings.Builder
	b.WriteString(`set -em
server=
stop() { if [ -n "$server" ]; then kill -KILL -- -$server; wait $server || true; fi; server=; }
trap stop EXIT
`)
	for i, block := range blocks {
		code := h.here(block.code)
		if block.server {
			code = "stop\n: >serving\n{ " + code + "} >serving 2>&1 & server=$!\n" +
				"until grep 'orders is at' serving; do kill -0 $server || { cat serving; exit 1; }; sleep 0.05; done\n"
		}
		fmt.Fprintf(&b, "printf '%s'\n%s", strings.ReplaceAll(mark(i), "\n", `\n`), code)
	}
	return b.String()
}

func (h *hour) environ() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ERRAND_") && !strings.HasPrefix(v, "SPIFFE_") {
			env = append(env, v)
		}
	}
	return append(env, "TMPDIR="+h.dir, EnvOutput+"=table") // as on a terminal
}

// startDev starts errand dev where its sub-commands look for it, on ports of its own, with the sample
// inventory for the servers' address.
func (h *hour) startDev(t *testing.T) {
	inventory := strings.ReplaceAll(`audiences:
  - {name: orders, owner: you, hosts: [ORDERS, ADDR], scopes: ["orders:read", "orders:write"], servers: ["spiffe://dev.errand/orders"]}
workloads:
  - {id: spiffe://dev.errand/report, owner: you, purpose: local development, ceiling: {orders: ["orders:read"]}}
`, "ADDR", fmt.Sprintf("%q", h.addr))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	orders := l.Addr().String()
	file := filepath.Join(h.dir, "inventory.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(inventory, "ORDERS", fmt.Sprintf("%q", orders))), 0o600); err != nil {
		t.Fatal(err)
	}
	const free = "127.0.0.1:0"
	dev := exec.Command(filepath.Join(h.dir, "errand"), "dev", "--inventory", file, "--orders-address", orders,
		"--workload-address", free, "--public-address", free, "--operator-address", free, "--ops-address", free)
	var said bytes.Buffer
	dev.Env, dev.Stdout, dev.Stderr = h.environ(), &said, &said
	l.Close()
	if err := dev.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = dev.Process.Signal(syscall.SIGTERM)
		if err := dev.Wait(); err != nil {
			t.Errorf("errand dev: %v: %s", err, said.String())
		}
	})
	folder := filepath.Join(h.dir, filepath.Base(devDir()))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if d, err := demo.Describe(folder); err == nil && isReady(strings.TrimPrefix(d.OpsURL, "http://")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("errand dev is not ready")
		}
	}
}

func (h *hour) run(t *testing.T, script string) string {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-c", script)
	shell.Cancel = func() error { return shell.Process.Signal(syscall.SIGTERM) }
	shell.WaitDelay = 5 * time.Second
	var both bytes.Buffer
	shell.Dir, shell.Env, shell.Stdout, shell.Stderr = h.dir, h.environ(), &both, &both
	if err := shell.Run(); err != nil {
		t.Fatalf("%v:\n%s", err, both.String())
	}
	return both.String()
}
