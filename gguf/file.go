package gguf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Limits of the format, of llama.cpp and of sanity.
const (
	maxDims          = 4         // GGML_MAX_DIMS
	maxNameBytes     = 63        // GGML_MAX_NAME without the closing zero
	maxKeyBytes      = 1<<16 - 1 // the specification's limit for keys
	maxNesting       = 8         // arrays in arrays; real files have none
	maxTensorBytes   = 1<<63 - 1
	maxHeaderBytes   = 96 << 20 // the largest vocabularies take some 30 MB
	defaultAlignment = 32       // when general.alignment is missing
	maxAlignment     = 16 << 20 // padding is written for real; files have 32 to some thousand
	oldestVersion    = 2
	newestVersion    = 3
)

// magic opens every GGUF file.
const magic = "GGUF"

// Tensor describes one tensor.
type Tensor struct {
	// Name is unique in the file, 1 to 63 bytes.
	Name string

	// Shape lists the elements in each of 0 to 4 dimensions, the fastest first:
	// a matrix that maps n_in values to n_out is (n_in, n_out). No dimension is
	// empty; no dimensions at all is a single element.
	Shape []uint64

	Type Type

	// Offset is where the data begins, in bytes from [File.DataOffset]. Set by
	// [Open], ignored by [Write].
	Offset uint64

	// Size is the length of the data in bytes. Set by [Open], ignored by [Write].
	Size uint64

	// Part is the file of a split model that has the data, counted from 0; Offset
	// is from where that file's data begins. Set by [Open], ignored by [Write].
	Part int
}

// Elements gives the number of elements.
func (t Tensor) Elements() uint64 {
	n := uint64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// File is an open GGUF file, with all parts of a split model. Close it after use.
type File struct {
	Path     string // of the first part
	Version  uint32 // 2 or 3
	Metadata Metadata
	Tensors  []Tensor // in file order, part after part

	Alignment  uint64 // in bytes, a power of two; tensor offsets are multiples of it
	DataOffset int64  // where tensor data begins, in bytes from the start of the file
	Size       int64  // of all parts together, in bytes

	data   io.ReaderAt
	closer io.Closer // nil once closed
	parts  []*File   // of a split model, without the first
}

// Open reads and checks the header of a GGUF file. The first part of a split model
// stands for the whole of it: the others are found by their names. A missing file
// gives an error that wraps [fs.ErrNotExist]; other faults wrap [ErrNotGGUF],
// [ErrVersion], [ErrTruncated], [ErrCorrupt] or [ErrPart].
func Open(path string) (*File, error) {
	f, err := openOne(path)
	if err != nil {
		return nil, err
	}
	if err := f.openParts(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openOne opens a file and looks for no other part.
func openOne(path string) (*File, error) {
	if err := checkRegular(path); err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the model: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("cannot open the model: %w", err)
	}
	f, err := parse(file, info.Size())
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.Path = path
	f.closer = file
	return f, nil
}

// Close releases the file. Further calls do nothing.
func (f *File) Close() error {
	if f.closer == nil {
		return nil
	}
	err := f.closer.Close()
	for _, part := range f.parts {
		err = errors.Join(err, part.Close())
	}
	f.closer = nil
	return err
}

// part is the file that has the tensor's data.
func (f *File) part(t Tensor) *File {
	if t.Part == 0 {
		return f
	}
	return f.parts[t.Part-1]
}

// Place is where the tensor's data begins, in bytes from the start of its file.
func (f *File) Place(t Tensor) int64 { return f.part(t).DataOffset + int64(t.Offset) }

// Paths lists the model's files: one, or the parts of a split model in order.
func (f *File) Paths() []string {
	paths := []string{f.Path}
	for _, part := range f.parts {
		paths = append(paths, part.Path)
	}
	return paths
}

// Tensor finds a tensor by its name.
func (f *File) Tensor(name string) (Tensor, bool) {
	for _, t := range f.Tensors {
		if t.Name == name {
			return t, true
		}
	}
	return Tensor{}, false
}

// Reader reads the t.Size bytes of a tensor of this file.
func (f *File) Reader(t Tensor) *io.SectionReader {
	return io.NewSectionReader(f.part(t).data, f.Place(t), int64(t.Size))
}

// Copy gives a tensor of this file in the form that [Write] takes. The file
// must stay open until the data has been written.
func (f *File) Copy(t Tensor) Source {
	return Source{Tensor: t, Data: func(w io.Writer) error {
		_, err := io.Copy(w, f.Reader(t))
		return err
	}}
}

// checkRegular refuses what must not even be opened: opening a pipe blocks,
// reading a device may never end.
func checkRegular(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no file %s: check the path (%w)", path, fs.ErrNotExist)
	case err != nil:
		return fmt.Errorf("cannot open the model: %w", err)
	case info.IsDir():
		return fmt.Errorf("%s: %w: it is a folder, name a .gguf file in it", path, ErrNotGGUF)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s: %w: it is no regular file", path, ErrNotGGUF)
	}
	return nil
}

// notGGUF explains what a file without the magic seems to be.
func notGGUF(head string) error {
	starts := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(strings.ToLower(head), p) {
				return true
			}
		}
		return false
	}
	switch {
	case head == "":
		return fmt.Errorf("%w: the file is empty, fetch it again", ErrNotGGUF)
	case starts("version https://git-lfs"):
		return fmt.Errorf("%w: it is a Git LFS pointer, fetch the model itself with `git lfs pull`", ErrNotGGUF)
	case starts("<!doctype", "<html"):
		return fmt.Errorf("%w: it is a web page, fetch the model from its download link", ErrNotGGUF)
	case starts("lmgg", "tjgg", "fmgg", "algg"): // the magics of 2023, as stored
		return fmt.Errorf("%w: it is a GGML file of 2023, fetch or convert a GGUF of the model", ErrNotGGUF)
	}
	return fmt.Errorf("%w: it does not begin with %q but with %q; give a model in GGUF format", ErrNotGGUF, magic, head[:min(len(head), len(magic))])
}
