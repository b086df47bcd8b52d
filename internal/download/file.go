package download

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/internal/files"
)

// Unfinished ends the name of a file that is not whole yet, as Hugging Face's own programs
// have it.
const Unfinished = ".incomplete"

// mostUnknown bounds a file whose size neither the caller nor the server tells, in bytes.
const mostUnknown = 8 << 30

// Errors of [Client.File].
var (
	// ErrBusy is returned when another process is fetching the same file.
	ErrBusy = errors.New("another process is fetching it")

	// ErrChecksum is returned when what came is not what was asked for. It was deleted.
	ErrChecksum = errors.New("the checksum is wrong")
)

// File is what [Client.File] fetches.
type File struct {
	Address  string
	Size     int64            // in bytes; -1 = the server tells
	NewSum   func() hash.Hash // makes the checksum of nothing
	Want     []byte           // the checksum of the file
	Progress func(have, total int64)
}

// File leaves a file at path, whole and right. What there is of it goes on from where it
// was. After an error there is nothing at path, and what has come is kept beside it, unless
// it was wrong. Errors: [ErrBusy], [ErrChecksum], [*StatusError], ctx's, the network's, or
// the system's, an [*os.PathError] that wraps ENOSPC where there is no room.
func (c *Client) File(ctx context.Context, file File, path string) (err error) {
	if file.isAt(path) {
		return nil
	}
	t := transfer{File: file, total: file.Size}
	part := path + Unfinished
	if t.part, err = os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return err
	}
	defer t.part.Close()
	switch err := files.TryLock(t.part); {
	case errors.Is(err, files.ErrLocked):
		return fmt.Errorf("%w (%s is locked)", ErrBusy, part)
	case err != nil:
		return err
	case file.isAt(path): // another process has just brought it
		_ = os.Remove(part)
		return nil
	}
	if err := t.takeUp(); err != nil {
		return err
	}
	err = c.Retry(ctx, func() (bool, error) {
		before := t.have
		if before == t.total || t.right() {
			return false, nil
		}
		err := c.Get(ctx, file.Address, t.have, t.receive)
		if status := (*StatusError)(nil); errors.As(err, &status) && status.Code == http.StatusRequestedRangeNotSatisfiable && t.have > 0 {
			if err := t.restart(); err != nil {
				return false, err
			}
			err = c.Get(ctx, file.Address, 0, t.receive)
			return t.have > 0, err
		}
		return t.have > before, err
	})
	if err != nil {
		return err
	}
	if !t.right() {
		got := hex.EncodeToString(t.sum.Sum(nil))
		_ = t.part.Close()
		if err := os.Remove(part); err != nil {
			return err
		}
		return fmt.Errorf("%w: it is %s, not %s", ErrChecksum, got, hex.EncodeToString(file.Want))
	}
	if err := t.part.Sync(); err != nil {
		return err
	}
	_ = t.part.Close() // an open file has no new name on Windows
	if err := os.Rename(part, path); err != nil && !file.isAt(path) {
		return err
	}
	return nil
}

// isAt tells whether the file is at path: it was checked before it got the name.
func (f File) isAt(path string) bool {
	info, err := os.Stat(path)
	return err == nil && (f.Size < 0 || info.Size() == f.Size)
}

// transfer is a file on its way.
type transfer struct {
	File
	part  *os.File  // what has come
	sum   hash.Hash // of it
	have  int64     // bytes of it
	total int64     // bytes; -1 = not known yet
}

func (t *transfer) right() bool { return bytes.Equal(t.sum.Sum(nil), t.Want) }

// takeUp reads what an earlier call has left.
func (t *transfer) takeUp() error {
	info, err := t.part.Stat()
	if err != nil {
		return err
	}
	if t.Size >= 0 && info.Size() > t.Size {
		return t.restart()
	}
	t.sum = t.NewSum()
	t.have, err = io.Copy(t.sum, io.LimitReader(t.part, info.Size()))
	t.tell()
	return err
}

// restart throws away what has come.
func (t *transfer) restart() error {
	t.have, t.sum = 0, t.NewSum()
	if err := t.part.Truncate(0); err != nil {
		return err
	}
	_, err := t.part.Seek(0, io.SeekStart)
	return err
}

// receive adds what comes. A server that does not send from the middle sends all again.
func (t *transfer) receive(r *http.Response, body io.Reader) error {
	if r.StatusCode != http.StatusPartialContent && t.have > 0 {
		if err := t.restart(); err != nil {
			return err
		}
	}
	if t.Size < 0 {
		t.total = t.announced(r)
	}
	left := int64(mostUnknown)
	if t.total >= 0 {
		left = t.total - t.have
		if err := files.CheckRoom(filepath.Dir(t.part.Name()), uint64(max(left, 0))); err != nil {
			return &os.PathError{Op: "write", Path: t.part.Name(), Err: err}
		}
	}
	_, err := io.Copy(io.MultiWriter(t.part, t.sum, (*counter)(t)), io.LimitReader(body, left))
	if err == nil && t.have < t.total {
		return io.ErrUnexpectedEOF
	}
	return err
}

// announced is how many bytes the server says that the whole file has, -1 when it does not.
func (t *transfer) announced(r *http.Response) int64 {
	if r.StatusCode != http.StatusPartialContent {
		return r.ContentLength
	}
	_, whole, _ := strings.Cut(r.Header.Get("Content-Range"), "/")
	total, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || total < t.have {
		return -1
	}
	return total
}

func (t *transfer) tell() {
	if t.Progress != nil {
		t.Progress(t.have, t.total)
	}
}

// counter counts what a transfer has written.
type counter transfer

func (c *counter) Write(p []byte) (int, error) {
	c.have += int64(len(p))
	(*transfer)(c).tell()
	return len(p), nil
}
