package llama_test

import (
	"bytes"
	"debug/macho"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
)

// TestPublishedMacho compares what is found in llama.cpp's published libraries for macOS
// with the loader's own instructions, read in another way: every pointer of every file. In libllama
// one is to what masks need.
func TestPublishedMacho(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("set GALLOP_LONG=1 to fetch llama.cpp's libraries for macOS")
	}
	pointers := 0
	for _, p := range []struct{ device, platform string }{{"metal", "mac-arm64-metal"}, {"cpu", "mac-x64"}} {
		dir := llamatest.Published(t, filepath.Join("..", "build", "packages"), p.device, p.platform)
		files, err := filepath.Glob(filepath.Join(dir, "lib*"))
		require.NoError(t, err)
		hooked := 0
		for _, path := range files {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			f, err := macho.NewFile(bytes.NewReader(data))
			require.NoError(t, err)
			bound := boundPointers(t, f, data)
			var names []string
			for name := range bound {
				names = append(names, name)
			}
			slices.Sort(names)
			require.NotEmpty(t, names, path)
			found := newMachoFinder(t, names...).find(t, mappedMacho(f, data))
			require.Len(t, found, len(names), path)
			for i, name := range names {
				require.Equal(t, bound[name].String(), found[i], "%s: %s", path, name)
				pointers += len(bound[name])
				if name == "ggml_backend_sched_alloc_graph" {
					require.Regexp(t, `libllama\.`, path)
					require.Len(t, bound[name], 1)
					hooked++
				}
			}
		}
		require.Equal(t, 1, hooked, p.platform)
	}
	t.Logf("%d pointers", pointers)
	require.Greater(t, pointers, 1000)
}

// boundPointer is one that the loader fills.
type boundPointer struct {
	offset   uint64 // from the image's beginning
	readOnly bool   // afterwards
}

type boundTo []boundPointer

// String is as testdata/machofinder.c writes it.
func (all boundTo) String() string {
	slices.SortFunc(all, func(a, b boundPointer) int { return int(int64(a.offset - b.offset)) })
	text := fmt.Sprint(len(all))
	for _, p := range all[:min(len(all), 4)] {
		text += fmt.Sprintf(":%x", p.offset)
		if p.readOnly {
			text += "r"
		}
	}
	return text
}

// mappedMacho lays out a file's segments as in memory.
func mappedMacho(f *macho.File, data []byte) []byte {
	var image []byte
	for _, s := range machoSegments(f) {
		if end := s.Addr + s.Memsz; end > uint64(len(image)) {
			image = append(image, make([]byte, end-uint64(len(image)))...)
		}
		copy(image[s.Addr:], data[s.Offset:][:s.Filesz])
	}
	return image
}

// machoSegments are a library's, in order; its image begins at address 0.
func machoSegments(f *macho.File) (all []*macho.Segment) {
	for _, l := range f.Loads {
		if s, ok := l.(*macho.Segment); ok {
			all = append(all, s)
		}
	}
	return all
}

// boundPointers reads the loader's instructions: which pointers in sections for them are
// filled with which function.
func boundPointers(t *testing.T, f *macho.File, data []byte) map[string]boundTo {
	all := map[string]boundTo{}
	add := func(name string, offset uint64) {
		if !strings.HasPrefix(name, "_") {
			return // no function in C: the loader's own dyld_stub_binder
		}
		for _, s := range f.Sections {
			if kind := s.Flags & 0xff; (kind == 6 || kind == 7) && s.Addr <= offset && offset < s.Addr+s.Size {
				readOnly := f.Segment(s.Seg).Flag&0x10 != 0
				p := boundPointer{offset, readOnly}
				if name = strings.TrimPrefix(name, "_"); !slices.Contains(all[name], p) {
					all[name] = append(all[name], p)
				}
			}
		}
	}
	for _, l := range f.Loads {
		raw := l.Raw()
		u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(raw[at:]) }
		switch u32(0) {
		case 0x22, 0x80000022: // LC_DYLD_INFO
			for at := 16; at <= 32; at += 8 { // bind, weak bind, lazy bind
				bindOpcodes(t, data[u32(at):][:u32(at+4)], machoSegments(f), add)
			}
		case 0x80000034: // LC_DYLD_CHAINED_FIXUPS
			chainedFixups(t, data[u32(8):][:u32(12)], data, machoSegments(f), add)
		}
	}
	return all
}

// bindOpcodes runs the instructions of an older format.
func bindOpcodes(t *testing.T, code []byte, segments []*macho.Segment, add func(name string, offset uint64)) {
	number := func() (n uint64) { // negative ones have ten bytes, and what is beyond 64 bits is lost
		for shift := 0; ; shift += 7 {
			b := code[0]
			code = code[1:]
			if n |= uint64(b&0x7f) << shift; b < 0x80 {
				return n
			}
		}
	}
	name, at := "", uint64(0)
	for len(code) > 0 {
		op, immediate := code[0]&0xf0, uint64(code[0]&0xf)
		code = code[1:]
		switch op {
		case 0x00, 0x10, 0x30, 0x50: // done, library, special library, type
		case 0x20, 0x60: // library, addend
			number()
		case 0x40:
			text, rest, ok := bytes.Cut(code, []byte{0})
			require.True(t, ok)
			name, code = string(text), rest
		case 0x70:
			at = segments[immediate].Addr + number()
		case 0x80:
			at += number()
		case 0x90:
			add(name, at)
			at += 8
		case 0xa0:
			add(name, at)
			at += 8 + number()
		case 0xb0:
			add(name, at)
			at += 8 + 8*immediate
		case 0xc0:
			times := number()
			skip := number()
			for range times {
				add(name, at)
				at += 8 + skip
			}
		default:
			require.Fail(t, "unknown instruction", "%#x", op)
		}
	}
}

// chainedFixups follows the chains of the newer format.
func chainedFixups(t *testing.T, fixups, data []byte, segments []*macho.Segment, add func(name string, offset uint64)) {
	u16, u32, u64 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	starts, imports, names := fixups[u32(fixups[4:]):], fixups[u32(fixups[8:]):], fixups[u32(fixups[12:]):]
	require.EqualValues(t, 1, u32(fixups[20:]), "format of imports")
	for i := range u32(starts) {
		offset := u32(starts[4+4*i:])
		if offset == 0 {
			continue // nothing is filled in this segment
		}
		start := starts[offset:]
		require.Contains(t, []uint16{2, 6}, u16(start[6:]), "format of pointers")
		pageSize, segment := uint64(u16(start[4:])), segments[i]
		for page := range uint64(u16(start[20:])) {
			first := u16(start[22+2*page:])
			if first == 0xffff {
				continue
			}
			for at := page*pageSize + uint64(first); ; {
				pointer := u64(data[segment.Offset+at:])
				if pointer>>63 == 1 {
					name := names[u32(imports[4*(pointer&0xffffff):])>>9:]
					text, _, _ := bytes.Cut(name, []byte{0})
					add(string(text), segment.Addr+at)
				}
				next := pointer >> 51 & 0xfff
				if next == 0 {
					break
				}
				at += 4 * next
			}
		}
	}
}
