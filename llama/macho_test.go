package llama_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// machoFinder is testdata/machofinder.c at work.
type machoFinder struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// newMachoFinder starts one that looks for the functions of these names.
func newMachoFinder(t testing.TB, names ...string) *machoFinder {
	t.Helper()
	program := filepath.Join(t.TempDir(), "machofinder")
	out, err := exec.Command("cc", "testdata/machofinder.c", "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror",
		"-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I../third_party/layerskip", "-o", program).CombinedOutput()
	require.NoError(t, err, "cc: %s", out)
	cmd := exec.Command(program, names...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, in.Close())
		require.NoError(t, cmd.Wait(), "%s", &complaints)
	})
	return &machoFinder{in: in, out: bufio.NewReader(pipe)}
}

// find gives what is found in an image: for each name how many pointers, and where.
func (f *machoFinder) find(t testing.TB, image []byte) []string {
	t.Helper()
	_, err := f.in.Write(append(binary.LittleEndian.AppendUint64(nil, uint64(len(image))), image...))
	require.NoError(t, err)
	line, err := f.out.ReadString('\n')
	require.NoError(t, err)
	return strings.Fields(line)
}

// machoSection is a section of pointers.
type machoSection struct {
	kind     uint32 // 6 = pointers, 7 = lazy pointers
	readOnly bool   // its segment is
	symbols  []int  // of each pointer; -1 = something of the library's own
}

// Sizes in a Mach-O file, by Apple's loader.h and nlist.h.
const (
	machoHeader  = 32
	machoSegment = 72
	machoSect    = 80
	machoPage    = 0x1000
)

// machoImage is a library's image in memory: one segment for each section, and the
// symbols of these names.
func machoImage(names []string, sections ...machoSection) []byte {
	const (
		base     = 0x4000 // address of __TEXT
		fileMove = 0x800  // the file's __LINKEDIT lies so many bytes before the image's
	)
	u32 := binary.LittleEndian.AppendUint32
	u64 := binary.LittleEndian.AppendUint64
	fixed := func(b []byte, name string) []byte {
		return append(b, append([]byte(name), make([]byte, 16-len(name))...)...)
	}
	segment := func(name string, page, offset uint64, sections, flags uint32) []byte {
		b := fixed(u32(u32(nil, 0x19), machoSegment+sections*machoSect), name)
		b = u64(u64(u64(u64(b, base+page*machoPage), machoPage), offset), machoPage)
		return u32(u32(u32(u32(b, 3), 3), sections), flags)
	}
	commands := segment("__TEXT", 0, 0, 0, 0)
	var indices []byte
	for i, s := range sections {
		flags := uint32(0)
		if s.readOnly {
			flags = 0x10
		}
		page := uint64(i + 1)
		commands = append(commands, segment("__DATA", page, page*machoPage, 1, flags)...)
		commands = fixed(fixed(commands, "pointers"), "__DATA")
		commands = u64(u64(commands, base+page*machoPage+8), uint64(8*len(s.symbols)))
		commands = u32(u32(u32(u32(commands, 0), 3), 0), 0)
		commands = u32(u32(u32(u32(commands, s.kind), uint32(len(indices)/4)), 0), 0)
		for _, symbol := range s.symbols {
			index := uint32(0x80000000)
			if symbol >= 0 {
				index = uint32(symbol)
			}
			indices = u32(indices, index)
		}
	}
	var symbols []byte
	text := []byte{0}
	for _, name := range names {
		symbols = u64(append(u32(symbols, uint32(len(text))), 1, 0, 0, 2), 0)
		text = append(text, "_"+name+"\x00"...)
	}
	page := uint64(len(sections) + 1)
	edit := uint32(page*machoPage - fileMove)
	commands = append(commands, segment("__LINKEDIT", page, uint64(edit), 0, 0)...)
	commands = u32(u32(commands, 0x2), 24)
	commands = u32(u32(commands, edit), uint32(len(names)))
	commands = u32(u32(commands, edit+uint32(len(symbols)+len(indices))), uint32(len(text)))
	commands = append(u32(u32(commands, 0xb), 80), make([]byte, 48)...)
	commands = u32(u32(commands, edit+uint32(len(symbols))), uint32(len(indices)/4))
	commands = append(commands, make([]byte, 16)...)

	image := u32(u32(u32(u32(nil, 0xfeedfacf), 0x0100000c), 0), 6)
	image = u32(u32(u32(u32(image, uint32(len(sections)+4)), uint32(len(commands))), 0), 0)
	image = append(image, commands...)
	image = append(image, make([]byte, int(page)*machoPage-len(image))...)
	return append(append(append(image, symbols...), indices...), text...)
}

func TestMachoPointers(t *testing.T) {
	names := []string{"wanted", "other", "wanted_too", "want"}
	const plain, lazy = 6, 7
	one := machoImage(names, machoSection{lazy, false, []int{1, -1, 0, 2}})
	f := newMachoFinder(t, "wanted")
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"lazy":           {one, "1:1018"},
		"read-only":      {machoImage(names, machoSection{plain, true, []int{0, 1}}), "1:1008r"},
		"second section": {machoImage(names, machoSection{lazy, false, []int{1, 2}}, machoSection{plain, true, []int{3, 0}}), "1:2010r"},
		"two":            {machoImage(names, machoSection{lazy, false, []int{0}}, machoSection{plain, true, []int{0}}), "2:1008:2008r"},
		"none":           {machoImage(names, machoSection{lazy, false, []int{1, 2, 3, -1}}), "0"},
		"no pointers":    {machoImage(names, machoSection{0, false, []int{0}}), "0"},
		"no sections":    {machoImage(names), "0"},
		"cut":            {one[:len(one)-1], "-1"},
		"header alone":   {one[:machoHeader], "-1"},
		"nothing":        {nil, "-1"},
		"another file":   {append([]byte("\x7fELF"), one[4:]...), "-1"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, []string{c.want}, f.find(t, c.image)) })
	}
}

// TestHostileMacho: whatever the bytes say, nothing outside them is read. The program has
// a sanitizer that would end it.
func TestHostileMacho(t *testing.T) {
	names := []string{"wanted", "other"}
	good := machoImage(names, machoSection{7, false, []int{1, 0}}, machoSection{6, true, []int{-1, 0}})
	random := rand.New(rand.NewPCG(1, 2))
	f := newMachoFinder(t, "wanted")
	answers := map[string]int{}
	for range 20_000 {
		image := append([]byte(nil), good...)
		for range 1 + random.IntN(4) {
			at := random.IntN(len(image))
			if random.IntN(8) > 0 { // mostly the load commands
				at = random.IntN(machoHeader + 5*machoSegment + 2*machoSect)
			}
			image[at] = []byte{0, 0xff, byte(random.Uint32())}[random.IntN(3)]
		}
		if random.IntN(4) == 0 {
			image = image[:random.IntN(len(image))]
		}
		found := f.find(t, image)
		require.Len(t, found, 1)
		count, _, _ := strings.Cut(found[0], ":")
		answers[count]++
	}
	require.Greater(t, answers["-1"], 1000, fmt.Sprint(answers))
	require.Greater(t, answers["2"], 1000, fmt.Sprint(answers))
}

func FuzzMacho(f *testing.F) {
	names := []string{"wanted", "other"}
	f.Add(machoImage(names, machoSection{7, false, []int{1, 0}}))
	f.Add(machoImage(names, machoSection{6, true, []int{-1, 0}}, machoSection{7, false, []int{0}}))
	finder := newMachoFinder(f, "wanted")
	f.Fuzz(func(t *testing.T, image []byte) { require.Len(t, finder.find(t, image), 1) })
}
