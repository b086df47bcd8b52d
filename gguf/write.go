package gguf

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/internal/files"
)

// Source is a tensor to be written.
type Source struct {
	// Tensor gives name, shape and type; offset and size are worked out.
	Tensor Tensor

	// Data writes the tensor's bytes, exactly as many as shape and type need.
	Data func(io.Writer) error
}

// Bytes is a [Source.Data] that writes b.
func Bytes(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// WriteOptions are the options of [Write]; nil means the defaults.
type WriteOptions struct {
	// Progress, when set, is called now and then with the bytes of tensor data
	// written so far and in total, at the end with done == total.
	Progress func(done, total int64)
}

// Write makes a GGUF file of version 3 with this metadata and these tensors,
// in this order. The data goes to a temporary file in the same folder, which
// takes the name path only when it is complete and on the disk; a file that was
// there before is replaced. After an error, a full disk or a cancelled context
// the temporary file is gone and path is as it was.
//
// It fails with [ErrInvalid], or with the system's error for a full disk, before
// anything is written, and with [ErrTensorSize] when a tensor's data has the
// wrong length.
func Write(ctx context.Context, path string, meta Metadata, tensors []Source, opts *WriteOptions) (err error) {
	header, layout, err := encodeHeader(meta, tensors)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", path, ErrInvalid, err)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("cannot write %s: it is there already and is no regular file", path)
	}
	size := uint64(len(header)) + layout.size
	if err := files.CheckRoom(filepath.Dir(path), size); err != nil {
		return fmt.Errorf("cannot write %s, %d bytes: %w", path, size, err)
	}
	tmp, err := createTemp(path)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, withoutPath(err))
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if opts == nil {
		opts = &WriteOptions{}
	}
	out := &dataWriter{ctx: ctx, w: bufio.NewWriterSize(tmp, writeBuffer), total: layout.size, progress: opts.Progress}
	err = out.file(header, tensors, layout)
	if err == nil {
		err = errors.Join(tmp.Sync(), tmp.Close())
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s, %d bytes: %w", path, size, withoutPath(err))
	}
	syncFolder(filepath.Dir(path))
	return nil
}

// writeBuffer is large enough that the system call costs nothing beside the
// copy.
const writeBuffer = 1 << 20

// createTemp makes a file beside path. Unlike os.CreateTemp it leaves the
// permissions to the user's umask, as for any new file.
func createTemp(path string) (*os.File, error) {
	name := fmt.Sprintf(".%s.%s.tmp", filepath.Base(path), rand.Text())
	return os.OpenFile(filepath.Join(filepath.Dir(path), name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
}

// withoutPath drops the temporary file's name, which means nothing to the user.
func withoutPath(err error) error {
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) {
		return pathErr.Err
	}
	if linkErr := (*os.LinkError)(nil); errors.As(err, &linkErr) {
		return linkErr.Err
	}
	return err
}

// syncFolder puts a rename on the disk. Not every file system can; the file is
// complete either way.
func syncFolder(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		d.Close()
	}
}

// dataLayout says where each tensor lies, in bytes from the start of the data.
type dataLayout struct {
	offset, bytes []uint64 // (nTensors,)
	size          uint64   // of all data, padding included
	align         uint64
}

// encodeHeader gives everything before the tensor data, padding included.
func encodeHeader(meta Metadata, tensors []Source) ([]byte, dataLayout, error) {
	var e encoder
	e.WriteString(magic)
	e.fixed(uint32(newestVersion))
	e.fixed(uint64(len(tensors)))
	e.fixed(uint64(len(meta)))
	if err := e.metadata(meta); err != nil {
		return nil, dataLayout{}, err
	}
	layout, err := layOut(meta, tensors)
	if err != nil {
		return nil, dataLayout{}, err
	}
	for i, s := range tensors {
		e.string(s.Tensor.Name)
		e.fixed(uint32(len(s.Tensor.Shape)))
		e.fixed(s.Tensor.Shape)
		e.fixed(uint32(s.Tensor.Type))
		e.fixed(layout.offset[i])
	}
	e.Write(make([]byte, padTo(uint64(e.Len()), layout.align)-uint64(e.Len())))
	return e.Bytes(), layout, nil
}

func layOut(meta Metadata, tensors []Source) (dataLayout, error) {
	align, err := meta.alignment()
	layout := dataLayout{align: align}
	seen := make(map[string]bool)
	for _, s := range tensors {
		t := s.Tensor
		var n uint64
		if err == nil {
			n, err = t.Type.Size(t.Shape)
		}
		switch {
		case err != nil:
			return layout, fmt.Errorf("tensor %q: %w", t.Name, err)
		case seen[t.Name]:
			return layout, fmt.Errorf("tensor %q is there twice", t.Name)
		case t.Name == "" || len(t.Name) > maxNameBytes:
			return layout, fmt.Errorf("tensor name %q has %d bytes, possible are 1 to %d", t.Name, len(t.Name), maxNameBytes)
		case n > maxTensorBytes-align-layout.size:
			return layout, fmt.Errorf("tensor %q is too large: %d bytes", t.Name, n)
		}
		seen[t.Name] = true
		layout.offset = append(layout.offset, layout.size)
		layout.bytes = append(layout.bytes, n)
		layout.size = padTo(layout.size+n, align)
	}
	return layout, err
}

// encoder builds the header in memory.
type encoder struct{ bytes.Buffer }

// fixed appends a value, or a slice of values, of a fixed size.
func (e *encoder) fixed(v any) {
	b, err := binary.Append(e.AvailableBuffer(), binary.LittleEndian, v)
	if err != nil {
		panic("gguf: " + err.Error()) // the callers pass fixed-size types only
	}
	e.Write(b)
}

func (e *encoder) string(s string) {
	e.fixed(uint64(len(s)))
	e.WriteString(s)
}

func (e *encoder) metadata(meta Metadata) error {
	seen := make(map[string]bool)
	for _, kv := range meta {
		if seen[kv.Key] {
			return fmt.Errorf("metadata key %q is there twice", kv.Key)
		}
		if kv.Key == "" || len(kv.Key) > maxKeyBytes {
			return fmt.Errorf("metadata key of %d bytes, possible are 1 to %d", len(kv.Key), maxKeyBytes)
		}
		seen[kv.Key] = true
		e.string(kv.Key)
		kind, ok := kindOf(kv.Value)
		if ok {
			e.fixed(kind)
			ok = e.value(kv.Value, 0)
		}
		if !ok {
			return fmt.Errorf("metadata key %q: a value of type %T cannot be stored", kv.Key, kv.Value)
		}
	}
	return nil
}

// value appends a value without its kind; ok is false when it, or an element
// of it, has no GGUF type.
func (e *encoder) value(value any, depth int) (ok bool) {
	if s, isText := value.(string); isText {
		e.string(s)
		return true
	}
	n, isArray := ArrayLen(value)
	if !isArray {
		e.fixed(value)
		return true
	}
	elem, ok := elemKindOf(value)
	if !ok || depth == maxNesting {
		return false
	}
	e.fixed(elem)
	e.fixed(uint64(n))
	switch v := value.(type) {
	case []string:
		for _, s := range v {
			e.string(s)
		}
	case []any:
		for _, inner := range v {
			if _, isArray := ArrayLen(inner); !isArray || !e.value(inner, depth+1) {
				return false
			}
		}
	default:
		e.fixed(value)
	}
	return true
}

func kindOf(value any) (kind uint32, ok bool) {
	switch value.(type) {
	case uint8:
		return kindUint8, true
	case int8:
		return kindInt8, true
	case uint16:
		return kindUint16, true
	case int16:
		return kindInt16, true
	case uint32:
		return kindUint32, true
	case int32:
		return kindInt32, true
	case uint64:
		return kindUint64, true
	case int64:
		return kindInt64, true
	case float32:
		return kindFloat32, true
	case float64:
		return kindFloat64, true
	case bool:
		return kindBool, true
	case string:
		return kindString, true
	}
	if _, ok := elemKindOf(value); ok {
		return kindArray, true
	}
	return 0, false
}

// elemKindOf gives the element kind of an array value.
func elemKindOf(value any) (kind uint32, ok bool) {
	switch value.(type) {
	case []uint8:
		return kindUint8, true
	case []int8:
		return kindInt8, true
	case []uint16:
		return kindUint16, true
	case []int16:
		return kindInt16, true
	case []uint32:
		return kindUint32, true
	case []int32:
		return kindInt32, true
	case []uint64:
		return kindUint64, true
	case []int64:
		return kindInt64, true
	case []float32:
		return kindFloat32, true
	case []float64:
		return kindFloat64, true
	case []bool:
		return kindBool, true
	case []string:
		return kindString, true
	case []any:
		return kindArray, true
	}
	return 0, false
}

// dataWriter takes the bytes of one tensor after the other. It refuses more
// than the tensor's size, and stops when the context ends.
type dataWriter struct {
	ctx         context.Context
	w           *bufio.Writer
	left        uint64 // bytes that the tensor at hand still needs
	done, total uint64 // bytes of all tensor data
	progress    func(done, total int64)
	err         error // the first one, kept in case a Data function drops it
}

func (d *dataWriter) file(header []byte, tensors []Source, layout dataLayout) error {
	if _, err := d.w.Write(header); err != nil {
		return err
	}
	for i, s := range tensors {
		if err := d.tensor(s, layout.bytes[i]); err != nil {
			return fmt.Errorf("tensor %q: %w", s.Tensor.Name, err)
		}
		d.left = padTo(d.done, layout.align) - d.done
		if _, err := d.Write(make([]byte, d.left)); err != nil {
			return err
		}
	}
	return d.w.Flush()
}

func (d *dataWriter) tensor(s Source, size uint64) error {
	d.left = size
	if s.Data == nil {
		return fmt.Errorf("%w: no data given, %d needed", ErrTensorSize, size)
	}
	err := s.Data(d)
	if err = cmp.Or(d.err, err); err != nil {
		return err
	}
	if d.left != 0 {
		return fmt.Errorf("%w: %d of %d given", ErrTensorSize, size-d.left, size)
	}
	return nil
}

// Write implements [io.Writer] for [Source.Data].
func (d *dataWriter) Write(b []byte) (n int, err error) {
	defer func() { d.err = cmp.Or(d.err, err) }()
	if err := cmp.Or(d.err, d.ctx.Err()); err != nil {
		return 0, err
	}
	if uint64(len(b)) > d.left {
		return 0, fmt.Errorf("%w: at least %d too many", ErrTensorSize, uint64(len(b))-d.left)
	}
	n, err = d.w.Write(b)
	d.left -= uint64(n)
	d.done += uint64(n)
	if d.progress != nil && err == nil {
		d.progress(int64(d.done), int64(d.total))
	}
	return n, err
}
