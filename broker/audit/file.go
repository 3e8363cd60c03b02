// Package audit keeps events durable. Open a File and give it to the broker as its Auditor.
//
// A File has one JSON object a line, in the order of recording, and every line that Record has
// returned for is on the disk: concurrent callers share one write and one fsync. The file is
// created with mode 0600 and only appended to. A line never holds a token.
//
// An event is in the log of the process that did what it says. Only ends of tasks, and what operators revoke, lock and lift, may
// be in that of another: a process that is killed between the store and its log leaves the event to those that share
// its store, or to itself when it is started again, within [broker.RecordBound]. Such a line says reconciled and has what
// the store knows: of an end there is no address, and no actor when that may have been one of several; of a change of the control
// list all that was asked for, and unsure, since it may not have happened. The same event, by its ID,
// may then be in both logs, or twice in one; it is one event. So is the begin of a task that was asked for again, with the
// same idempotency key.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
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
	open    *batch     // collects lines while another batch is being written
	writing bool       // a writer runs, and owns size and torn
	closed  bool
	writer  sync.WaitGroup

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
	done  chan struct{} // closed when err is final
	err   error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Open opens or creates the log at path for this process alone, and cuts off a last line that a
// crash has left unfinished: nobody was told that it is durable.
func Open(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: open the log: %w", err)
	}
	size, err := own(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("audit: %s: %w", path, err)
	}
	return newFile(f, size), nil
}

// own takes the log for this process and returns the size of its whole lines.
func own(f *os.File) (int64, error) {
	if err := lock(f); err != nil {
		return 0, fmt.Errorf("another process writes this log: %w; give each broker a log of its own", err)
	}
	if err := f.Chmod(0o600); err != nil {
		return 0, err
	}
	size, err := wholeLines(f)
	if err != nil {
		return 0, err
	}
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	return size, syncDir(filepath.Dir(f.Name()))
}

// syncDir makes the file's name durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func newFile(d disk, size int64) *File { return &File{disk: d, open: newBatch(), size: size} }

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
// is; when the context ends first they may still get there. An event that is recorded again has the
// same ID.
func (f *File) Record(ctx context.Context, events ...broker.Event) error {
	if len(events) == 0 {
		return nil
	}
	lines, err := encode(events)
	if err != nil {
		return err
	}
	mine, err := f.queue(lines)
	if err != nil {
		return err
	}
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return fmt.Errorf("audit: the disk did not answer in time: %w", context.Cause(ctx))
	}
}

// queue adds lines to the open batch and sees to it that somebody writes it.
func (f *File) queue(lines []byte) (*batch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	if pending := f.open.lines.Len(); pending > 0 && pending+len(lines) > MaxPending {
		return nil, fmt.Errorf("audit: %d bytes are waiting for the disk already; it is too slow or hangs", pending)
	}
	f.open.lines.Write(lines)
	if !f.writing {
		f.writing = true
		f.writer.Go(f.drain)
	}
	return f.open, nil
}

// drain writes batches until none is waiting. Those who come meanwhile share the next one. It runs
// on its own, so that a disk that hangs holds up nobody for longer than they want to wait.
func (f *File) drain() {
	for {
		runtime.Gosched() // those who have events ready share this write
		f.mu.Lock()
		b := f.open
		if b.lines.Len() == 0 {
			f.writing = false
			f.mu.Unlock()
			return
		}
		f.open = newBatch()
		f.mu.Unlock()
		b.err = f.write(b.lines.Bytes())
		close(b.done)
	}
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
	closed := f.closed
	f.closed = true
	f.mu.Unlock()
	if closed {
		return nil
	}
	f.writer.Wait()
	return f.disk.Close()
}

func encode(events []broker.Event) ([]byte, error) {
	var lines bytes.Buffer
	for _, e := range events {
		line, err := json.Marshal(newLine(e))
		if err != nil {
			return nil, fmt.Errorf("audit: encode event %s: %w", e.ID, err)
		}
		lines.Write(Printable(line))
		lines.WriteByte('\n')
	}
	return lines.Bytes(), nil
}
