package archmodel

import (
	"bytes"
	"context"
	_ "embed" // for the C source
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

//go:embed tensors/tensors.c
var source []byte

// Maker makes models. It needs a C compiler, once.
type Maker struct {
	// Program tells which tensors a model has (tensors/tensors.c).
	Program string
	// Library is libllama's path.
	Library string
}

// NewMaker compiles the program into dir. include is the folder of llama_api.h.
func NewMaker(ctx context.Context, dir, include, libllama string) (*Maker, error) {
	text := filepath.Join(dir, "tensors.c")
	if err := os.WriteFile(text, source, 0o666); err != nil {
		return nil, err
	}
	mk := &Maker{Program: filepath.Join(dir, "tensors"), Library: libllama}
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	out, err := exec.CommandContext(ctx, cc, "-std=c11", "-O2", "-I"+include, text, "-o", mk.Program, "-ldl").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w: %s", text, err, out)
	}
	return mk, nil
}

// Write makes a model at path, beside which it needs room for a second small file.
// The error says what libllama thinks of the metadata.
func (mk *Maker) Write(ctx context.Context, m Model, path string) error {
	tensors, err := mk.tensors(ctx, m, path+".metadata")
	if err != nil {
		return fmt.Errorf("make %s: %w", m.Name, err)
	}
	sources := make([]gguf.Source, len(tensors))
	for i, t := range tensors {
		sources[i] = gguf.Source{Tensor: t, Data: gguf.Bytes(data(t))}
	}
	if err := gguf.Write(ctx, path, m.metadata(true), sources, nil); err != nil {
		return fmt.Errorf("make %s: %w", m.Name, err)
	}
	return nil
}

// libllama wants as many tensors in the metadata as it makes, and says how many those are.
var tensorCount = regexp.MustCompile(`expected (\d+), got (\d+)`)

// tensors asks libllama which tensors the model has, by a file at path that is gone afterwards.
func (mk *Maker) tensors(ctx context.Context, m Model, path string) ([]gguf.Tensor, error) {
	defer os.Remove(path)
	named := m.names()
	for range 2 {
		var sources []gguf.Source
		for _, name := range named {
			t := gguf.Tensor{Name: name, Type: gguf.F32, Shape: []uint64{1}}
			if strings.Contains(name, "tid2eid") {
				t.Type = gguf.I32
			}
			sources = append(sources, gguf.Source{Tensor: t, Data: gguf.Bytes(make([]byte, 4))})
		}
		if err := gguf.Write(ctx, path, m.metadata(false), sources, nil); err != nil {
			return nil, err
		}
		var out, said bytes.Buffer
		cmd := exec.CommandContext(ctx, mk.Program, mk.Library, path)
		cmd.Stdout, cmd.Stderr = &out, &said
		err := cmd.Run()
		if err == nil {
			return parse(out.String())
		}
		count := tensorCount.FindStringSubmatch(said.String())
		if count == nil {
			return nil, fmt.Errorf("libllama makes no model of this metadata: %w: %s", err, bytes.TrimSpace(said.Bytes()))
		}
		expected, err := strconv.Atoi(count[1])
		if err != nil {
			return nil, err
		}
		got, err := strconv.Atoi(count[2])
		if err != nil {
			return nil, err
		}
		for i := range got - expected {
			named = append(named, fmt.Sprint("more.", i))
		}
	}
	return nil, errors.New("libllama does not tell how many tensors the model has")
}

// parse reads what the program printed. A matrix of two uses is there once.
func parse(text string) (tensors []gguf.Tensor, err error) {
	known := map[string]bool{}
	for line := range strings.Lines(text) {
		var t gguf.Tensor
		var shape [4]uint64
		if _, err := fmt.Sscan(line, &t.Name, (*uint32)(&t.Type), &shape[0], &shape[1], &shape[2], &shape[3]); err != nil {
			return nil, fmt.Errorf("unexpected line %q: %w", line, err)
		}
		dims := 4
		for dims > 1 && shape[dims-1] == 1 {
			dims--
		}
		t.Shape = shape[:dims]
		if !known[t.Name] {
			known[t.Name] = true
			tensors = append(tensors, t)
		}
	}
	return tensors, nil
}

// data makes up a tensor's numbers, of a size that keeps the stream's from growing or vanishing.
func data(t gguf.Tensor) []byte {
	hash := fnv.New64a()
	hash.Write([]byte(t.Name))
	random := rand.New(rand.NewPCG(hash.Sum64(), 5))
	mean, sigma, positive := distribution(t)
	b := make([]byte, 0, 4*t.Elements())
	for i := range t.Elements() {
		if t.Type == gguf.I32 {
			b = binary.LittleEndian.AppendUint32(b, uint32(i%2)) // experts of tokens
			continue
		}
		v := mean + sigma*random.NormFloat64()
		if positive {
			v = math.Abs(v) + 0.1
		}
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
	}
	return b
}

func distribution(t gguf.Tensor) (mean, sigma float64, positive bool) {
	has := func(part string) bool { return strings.Contains(t.Name, part) }
	bias := strings.HasSuffix(t.Name, ".bias")
	switch {
	case has("norm"):
		if bias {
			return 0, 0.1, false
		}
		return 1, 0.1, false
	case bias:
		return 0, 0.2, false
	case has("per_layer_token_embd"):
		return 0, 0.3, false
	case has("token_embd"), has("position_embd"), has("token_types"):
		return 0, 1, false
	case has("scale"), strings.HasSuffix(t.Name, "ssm_d"):
		return 1, 0.1, false
	case strings.HasSuffix(t.Name, "ssm_a"): // below 0: a state decays
		return -1, 0.2, false
	case has("rope_f"):
		return 1, 0.1, true
	case has("sinks"):
		return 0, 0.5, false
	}
	return 0, 1 / math.Sqrt(float64(t.Shape[0])), false
}
