package search

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"

	"github.com/gallop-llm/gallop/skip"
)

// Errors of [OpenLog] and of a log's use.
var (
	// ErrLog is returned when a file is no log, and when a log is used after
	// Close.
	ErrLog = errors.New("not a search log")

	// ErrLogKey is returned when a log was written for another model, other data
	// or other settings.
	ErrLogKey = errors.New("this log belongs to another search")
)

// Log keeps losses on disk, so that a search that was killed goes on where it
// was: it is run again from the start, and the log answers for what it knows.
// Losses come back to the last bit, so the result is the same.
//
// The file is a line of JSON that names the key, then one for each evaluation,
// written at once and whole when it is done. What a kill or a crash left
// unreadable at the end is cut off when the log is opened. One process may use a
// log at a time, any number of goroutines.
type Log struct {
	mu    sync.Mutex
	file  *os.File                   // nil once closed
	size  int64                      // bytes up to the end of the last whole line
	known map[logKey]map[int]float64 // by example
}

// logKey is what losses belong to.
type logKey struct {
	task string
	mask skip.Mask
}

// logHead and logLine are the lines of the file.
type (
	logHead struct {
		Version int    `json:"gallop_search_log"`
		Key     string `json:"key"`
	}
	logLine struct {
		Task     string    `json:"task"`
		Mask     skip.Mask `json:"mask"`
		Examples []int     `json:"examples"`
		Losses   string    `json:"losses"` // the bits of each, big endian, in hex: exact, and NaN has some too
	}
)

// logVersion changes when old files can no longer be read.
const logVersion = 2

// lossHex is how many hex digits a loss takes.
const lossHex = 16

// OpenLog opens the log at path, or makes it. key stands for everything that
// losses depend on besides task, mask and example: model, data, settings. A log
// with another key is refused with [ErrLogKey], any other file with [ErrLog];
// [CreateLog] starts anew.
func OpenLog(path, key string) (*Log, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	l := &Log{file: file}
	if err := l.open(key); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// CreateLog makes an empty log at path and forgets what was there.
func CreateLog(path, key string) (*Log, error) {
	if err := os.Truncate(path, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return OpenLog(path, key)
}

// open reads the file and puts it in order.
func (l *Log) open(key string) error {
	data, err := io.ReadAll(l.file)
	if err != nil {
		return err
	}
	if head := headLine(key); len(data) < len(head) && bytes.HasPrefix(head, data) { // new, or killed in the head
		if err := l.write(head); err != nil {
			return err
		}
		data = head
	}
	if l.size, l.known, err = readLog(data, key); err != nil {
		return err
	}
	return l.file.Truncate(l.size)
}

// readLog gives what is in a log's file, and how many bytes of it are whole
// lines. The first that is not ends it.
func readLog(data []byte, key string) (size int64, known map[logKey]map[int]float64, err error) {
	end := bytes.IndexByte(data, '\n') + 1
	var head logHead
	if end == 0 || json.Unmarshal(data[:end], &head) != nil || head.Version == 0 {
		return 0, nil, ErrLog
	}
	if head.Version != logVersion {
		return 0, nil, fmt.Errorf("%w that this version reads: it is of format %d, want %d", ErrLog, head.Version, logVersion)
	}
	if !bytes.Equal(data[:end], headLine(key)) {
		return 0, nil, fmt.Errorf("%w: its key is %q, wanted is %q; model, data or settings have changed", ErrLogKey, head.Key, key)
	}
	known = map[logKey]map[int]float64{}
	for {
		size += int64(end)
		data = data[end:]
		end = bytes.IndexByte(data, '\n') + 1
		var line logLine
		if end == 0 || json.Unmarshal(data[:end], &line) != nil {
			return size, known, nil
		}
		bits, err := hex.DecodeString(line.Losses)
		if err != nil || len(line.Losses) != lossHex*len(line.Examples) {
			return size, known, nil
		}
		losses := make([]float64, len(line.Examples))
		for i := range losses {
			losses[i] = math.Float64frombits(binary.BigEndian.Uint64(bits[8*i:]))
		}
		remember(known, logKey{line.Task, line.Mask}, line.Examples, losses)
	}
}

// headLine is the first line of a log.
func headLine(key string) []byte { return appendLine(nil, logHead{Version: logVersion, Key: key}) }

// appendLine appends v and the end of the line.
func appendLine(dst []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("skip: " + err.Error()) // of numbers and texts there is none
	}
	return append(append(dst, text...), '\n')
}

// remember adds losses of examples.
func remember(known map[logKey]map[int]float64, key logKey, examples []int, losses []float64) {
	if known[key] == nil {
		known[key] = map[int]float64{}
	}
	for k, i := range examples {
		known[key][i] = losses[k]
	}
}

// write appends a line in one go. What a failure left of it the next one
// overwrites.
func (l *Log) write(line []byte) error {
	if _, err := l.file.WriteAt(line, l.size); err != nil {
		return err
	}
	l.size += int64(len(line))
	return nil
}

// Wrap gives losses of task that the log answers where it can; it calls losses
// for the rest and keeps what comes back.
func (l *Log) Wrap(task string, losses Losses) Losses {
	return func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error) {
		key := logKey{task, mask}
		out, open, err := l.find(key, examples)
		if err != nil || len(open) == 0 {
			return out, err
		}
		fresh, err := call(ctx, losses, mask, open)
		if err != nil {
			return nil, err
		}
		if err := l.add(key, open, fresh); err != nil {
			return nil, err
		}
		out, _, err = l.find(key, examples)
		return out, err
	}
}

// find gives what is known of examples: (len(examples),), and lists the others.
func (l *Log) find(key logKey, examples []int) (losses []float64, open []int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil, nil, fmt.Errorf("%w any more: it is closed", ErrLog)
	}
	losses = make([]float64, len(examples))
	for k, i := range examples {
		loss, ok := l.known[key][i]
		if losses[k] = loss; !ok {
			open = append(open, i)
		}
	}
	return losses, open, nil
}

// add keeps losses, on disk first.
func (l *Log) add(key logKey, examples []int, losses []float64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return fmt.Errorf("%w any more: it is closed", ErrLog)
	}
	bits := make([]byte, 0, 8*len(losses))
	for _, loss := range losses {
		bits = binary.BigEndian.AppendUint64(bits, math.Float64bits(loss))
	}
	line := appendLine(nil, logLine{Task: key.task, Mask: key.mask, Examples: examples, Losses: hex.EncodeToString(bits)})
	if err := l.write(line); err != nil {
		return fmt.Errorf("keep losses of mask %q: %w", key.mask, err)
	}
	remember(l.known, key, examples, losses)
	return nil
}

// Close closes the file. Further calls do nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
