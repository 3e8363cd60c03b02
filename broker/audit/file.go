// Package audit keeps events durable. Open a File and give it to the broker as its Auditor.
//
// A File has one JSON object a line, in the order of recording, and every line that Record has
// returned for is on the disk: concurrent callers share one write and one fsync. The file is
// created with mode 0600 and only appended to. A line never holds a token.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/errandhq/errand/broker"
)

// MaxPending bounds the bytes that wait for the disk. Beyond it Record fails at once.
const MaxPending = 16 << 20

// ErrClosed is what Record returns after Close.
var ErrClosed = errors.New("audit: log is closed")

// File is an append-only JSON-lines log. It is safe for concurrent use.
type File struct {
	disk disk

	mu      sync.Mutex // guards all below but what the writer owns
	free    *sync.Cond // on mu: the disk is free again
	open    *batch     // collects lines while another batch is being written
	writing bool       // somebody writes, and owns size and torn
	closed  bool

	size int64 // bytes known to be whole lines
	torn bool  // a write failed half-way: cut back to size first
}

// disk is what a File needs of an *os.File; a test's fake fails on purpose.
type disk interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	Close() error
}

// batch is the lines of the callers that share one fsync.
type batch struct {
	lines bytes.Buffer
	done  bool
	err   error
}

// Open opens or creates the log at path and cuts off a last line that a crash has left unfinished:
// nobody was told that it is durable.
func Open(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: open the log: %w", err)
	}
	size, err := wholeLines(f)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("audit: read the end of %s: %w", path, err)
	}
	return newFile(f, size), nil
}

func newFile(d disk, size int64) *File {
	f := &File{disk: d, open: &batch{}, size: size}
	f.free = sync.NewCond(&f.mu)
	return f
}

// wholeLines returns the offset after the last newline.
func wholeLines(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	chunk := make([]byte, 64<<10)
	for end > 0 {
		n := min(end, int64(len(chunk)))
		if _, err := f.ReadAt(chunk[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(chunk[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// Record appends the events and returns when they are on the disk. An error means that perhaps none
// is. The context is not waited for: once the lines are queued, only the disk decides.
func (f *File) Record(_ context.Context, events ...broker.Event) error {
	lines, err := encode(events)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	if f.open.lines.Len()+len(lines) > MaxPending {
		return fmt.Errorf("audit: %d bytes are waiting for the disk already; it is too slow or hangs", f.open.lines.Len())
	}
	mine := f.open
	mine.lines.Write(lines)
	for !mine.done {
		if f.writing {
			f.free.Wait()
		} else {
			f.flush()
		}
	}
	return mine.err
}

// flush writes the open batch. It is called with mu held, and lets go of it meanwhile, so that the
// next batch can fill.
func (f *File) flush() {
	b := f.open
	f.open, f.writing = &batch{}, true
	f.mu.Unlock()
	err := f.write(b.lines.Bytes())
	f.mu.Lock()
	b.done, b.err, f.writing = true, err, false
	f.free.Broadcast()
}

// write is called by one flusher at a time.
func (f *File) write(lines []byte) error {
	if f.torn {
		if err := f.disk.Truncate(f.size); err != nil {
			return fmt.Errorf("audit: cut off an unfinished line: %w", err)
		}
		f.torn = false
	}
	f.torn = true
	if _, err := f.disk.Write(lines); err != nil {
		return fmt.Errorf("audit: write: %w", err)
	}
	if err := f.disk.Sync(); err != nil {
		return fmt.Errorf("audit: sync: %w", err)
	}
	f.torn = false
	f.size += int64(len(lines))
	return nil
}

// Close refuses further events, waits for those that are being written, and closes the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	for f.writing || f.open.lines.Len() > 0 {
		f.free.Wait()
	}
	return f.disk.Close()
}

func encode(events []broker.Event) ([]byte, error) {
	var lines bytes.Buffer
	for _, e := range events {
		line, err := json.Marshal(newLine(e))
		if err != nil {
			return nil, fmt.Errorf("audit: encode event %s: %w", e.ID, err)
		}
		lines.Write(line)
		lines.WriteByte('\n')
	}
	return lines.Bytes(), nil
}
