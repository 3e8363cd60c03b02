package devmode

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// MaxSocketPath is the longest path of a socket, in bytes: sockaddr_un has room for 108 on
	// Linux and 104 on macOS and the BSDs, and its end takes one. The shorter serves everywhere.
	MaxSocketPath = 103

	// maxName keeps the names of sockets short; a longer one is cut.
	maxName = 32

	dirMode    = 0o700
	socketMode = 0o600
)

// ownDirectory makes the directory, or checks one that is there.
func ownDirectory(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("devmode: the directory for sockets: %w", err)
	}
	return CheckDirectory(dir)
}

// CheckDirectory wants a directory of sockets to be this user's, and nobody else to write it: whoever
// can, can put a socket of their own in the place of ours, and be the agent that hands out identities.
func CheckDirectory(dir string) error {
	found, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("devmode: the directory for sockets: %w", err)
	}
	switch {
	case !found.IsDir():
		return fmt.Errorf("devmode: %s is not a directory (a link to one is refused too)", dir)
	case found.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("devmode: others can write the directory %s (mode %04o); make it yours with chmod 700, or choose another", dir, found.Mode().Perm())
	case !owned(found):
		return fmt.Errorf("devmode: the directory %s belongs to another user; choose one of your own", dir)
	}
	return nil
}

// listen makes the socket of an identity. A socket that a process left behind when it was killed is
// replaced; one that is in use is not.
func listen(path string) (net.Listener, error) {
	if len(path) > MaxSocketPath {
		return nil, fmt.Errorf("devmode: the socket path %s has %d bytes; the system allows %d: choose a shorter directory", path, len(path), MaxSocketPath)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("devmode: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("devmode: %w", err), l.Close())
	}
	return l, nil
}

func removeStale(path string) error {
	found, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("devmode: %w", err)
	}
	if found.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("devmode: %s is there and is not a socket; move it away", path)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return fmt.Errorf("devmode: another process is serving %s; stop it, or choose another directory", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("devmode: %w", err)
	}
	return nil
}

// socketName is the path of the ID where that is one short segment, as "report.sock". Otherwise it
// is the last segment and a hash of the whole ID, as "export-8b1f03aa.sock".
func socketName(id spiffeid.ID) string {
	name := strings.TrimPrefix(id.Path(), "/")
	if strings.Contains(name, "/") || len(name) > maxName {
		name = filepath.Base(name)
		hash := sha256.Sum256([]byte(id.String()))
		name = name[:min(len(name), maxName)] + "-" + hex.EncodeToString(hash[:4])
	}
	return name + ".sock"
}
