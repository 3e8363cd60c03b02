package verify

import (
	"io/fs"
	"os"
	"syscall"
	"testing"
	"time"
)

// folderOf is a folder of somebody.
type folderOf struct {
	uid  int
	mode fs.FileMode
}

func (folderOf) Name() string        { return "folder" }
func (folderOf) Size() int64         { return 0 }
func (f folderOf) Mode() fs.FileMode { return fs.ModeDir | f.mode }
func (folderOf) ModTime() time.Time  { return time.Time{} }
func (folderOf) IsDir() bool         { return true }
func (f folderOf) Sys() any          { return &syscall.Stat_t{Uid: uint32(f.uid)} }

// TestCacheFolder: whose folder a cache file is in can put another in its place.
func TestCacheFolder(t *testing.T) {
	us, other := os.Geteuid(), os.Geteuid()+1
	for f, want := range map[folderOf]bool{
		{us, 0o700}:                   true,
		{us, 0o755}:                   true,
		{us, 0o775}:                   false,
		{0, 0o755}:                    true,
		{0, 0o777 | fs.ModeSticky}:    true,
		{0, 0o777}:                    false,
		{other, 0o755}:                false,
		{other, 0o1 | fs.ModeSticky}:  false,
		{other, 0o77 | fs.ModeSticky}: false,
	} {
		if got := safeFolder(f); got != want {
			t.Errorf("of %d with %s: %v", f.uid, f.Mode(), got)
		}
	}
}
