package search

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"sync"

	"github.com/gallop-llm/gallop/internal/files"
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
// unreadable at the end is cut off when the log is opened. One process may write a
// log at a time, any number of goroutines. Other processes may read it meanwhile,
// see [Log.Join].
type Log struct {
	mu     sync.Mutex
	key    string
	file   *os.File                   // nil once closed
	size   int64                      // bytes up to the end of the last whole line
	joined map[string]int64           // other logs, and how far they were read
	known  map[logKey]map[int]float64 // by example
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
		Sum      uint32    `json:"sum"`    // CRC-32 of the line with 0 here
	}
)

// logVersion changes when old files can no longer be read.
const logVersion = 3

// lossHex is how many hex digits a loss takes.
const lossHex = 16

// OpenLog opens the log at path, or makes it. key stands for everything that
// losses depend on besides task, mask and example: model, data, settings. A log
// with another key is refused with [ErrLogKey], any other file with [ErrLog];
// [CreateLog] starts anew. A log that another process has open is files.ErrLocked.
func OpenLog(path, key string) (*Log, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	// Two processes would write over each other's lines. Where the file system has no locks, the
	// lines' sums tell.
	if err := files.TryLock(file); errors.Is(err, files.ErrLocked) {
		file.Close()
		return nil, fmt.Errorf("%s: %w; let it end first", path, err)
	}
	l := &Log{file: file, key: key, joined: map[string]int64{}, known: map[logKey]map[int]float64{}}
	if err := l.open(); err != nil {
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
func (l *Log) open() error {
	data, err := io.ReadAll(l.file)
	if err != nil {
		return err
	}
	if head := headLine(l.key); len(data) < len(head) && bytes.HasPrefix(head, data) { // new, or killed in the head
		if err := l.write(head); err != nil {
			return err
		}
		data = head
	}
	from, err := checkHead(data, l.key)
	if err != nil {
		return err
	}
	l.size = int64(from) + l.read(data[from:])
	return l.file.Truncate(l.size)
}

// checkHead gives the length of a log's first line.
func checkHead(data []byte, key string) (length int, err error) {
	end := bytes.IndexByte(data, '\n') + 1
	var head logHead
	if end == 0 || json.Unmarshal(data[:end], &head) != nil || head.Version == 0 {
		return 0, ErrLog
	}
	if head.Version != logVersion {
		return 0, fmt.Errorf("%w that this version reads: it is of format %d, want %d", ErrLog, head.Version, logVersion)
	}
	if !bytes.Equal(data[:end], headLine(key)) {
		return 0, fmt.Errorf("%w: its key is %q, wanted is %q; model, data or settings have changed", ErrLogKey, head.Key, key)
	}
	return end, nil
}

// CheckLog gives the error of [OpenLog] about a log that is another search's, or is none, and
// changes nothing. No log, or one that is being made, is no error.
func CheckLog(path, key string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if head := headLine(key); len(data) < len(head) && bytes.HasPrefix(head, data) {
		return nil
	}
	if _, err := checkHead(data, key); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// read takes in the lines in data, up to the first that is not whole, and gives the bytes
// that they have.
func (l *Log) read(data []byte) (size int64) {
	for {
		end := bytes.IndexByte(data[size:], '\n') + 1
		line, ok := parseLine(data[size : size+int64(end)])
		if !ok {
			return size
		}
		size += int64(end)
		bits, _ := hex.DecodeString(line.Losses)
		losses := make([]float64, len(line.Examples))
		for i := range losses {
			losses[i] = math.Float64frombits(binary.BigEndian.Uint64(bits[8*i:]))
		}
		l.remember(logKey{line.Task, line.Mask}, line.Examples, losses)
	}
}

// parseLine reads a line that is whole and undamaged.
func parseLine(text []byte) (line logLine, ok bool) {
	if json.Unmarshal(text, &line) != nil || len(line.Losses) != lossHex*len(line.Examples) {
		return line, false
	}
	_, err := hex.DecodeString(line.Losses)
	return line, err == nil && line.Sum == sumOf(line)
}

// sumOf is the checksum of a line.
func sumOf(line logLine) uint32 {
	line.Sum = 0
	return crc32.ChecksumIEEE(appendLine(nil, line))
}

// Join takes in what another process has written to the log at path since the last call,
// changes nothing there, and tells how many bytes that were. A line at the end that is not whole is left for the next call;
// no file, or an empty one, has nothing yet. The errors are those of [OpenLog]; [ErrLog] also when a line
// before the last is damaged.
func (l *Log) Join(path string) (news int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	from := l.joined[path]
	data, err := io.ReadAll(io.NewSectionReader(file, from, math.MaxInt64-from))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	if from == 0 {
		if head := headLine(l.key); len(data) < len(head) && bytes.HasPrefix(head, data) {
			return 0, nil // being made
		}
		length, err := checkHead(data, l.key)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		from, data = int64(length), data[length:]
	}
	size := l.read(data)
	l.joined[path] = from + size
	if end := bytes.IndexByte(data[size:], '\n') + 1; end > 0 && int64(end) < int64(len(data))-size {
		return 0, fmt.Errorf("%s: %w: byte %d is damaged; start what wrote it again, which goes on before that", path, ErrLog, from+size)
	}
	return size, nil
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
func (l *Log) remember(key logKey, examples []int, losses []float64) {
	if l.known[key] == nil {
		l.known[key] = map[int]float64{}
	}
	for k, i := range examples {
		l.known[key][i] = losses[k]
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
	line := logLine{Task: key.task, Mask: key.mask, Examples: examples, Losses: hex.EncodeToString(bits)}
	line.Sum = sumOf(line)
	if err := l.write(appendLine(nil, line)); err != nil {
		return fmt.Errorf("keep losses of mask %q: %w", key.mask, err)
	}
	l.remember(key, examples, losses)
	return nil
}

// Keep adds all values of a name under a mask, on disk first: other things than losses that
// a run needs again.
func (l *Log) Keep(name string, mask skip.Mask, values []float64) error {
	return l.add(logKey{name, mask}, All(len(values)), values)
}

// Kept gives the values of a name under a mask; nil = none are known.
func (l *Log) Kept(name string, mask skip.Mask) (values []float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.known[logKey{name, mask}]
	for i := range len(known) {
		values = append(values, known[i])
	}
	return values
}

// Known tells whether the losses of all these examples of task are known.
func (l *Log) Known(task string, mask skip.Mask, examples []int) bool {
	_, open, err := l.find(logKey{task, mask}, examples)
	return err == nil && len(open) == 0
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
