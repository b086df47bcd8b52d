package costs

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// File is what was found out about a model on a machine, as it is kept in a file:
// the next process need not find it out again.
type File struct {
	Version int `json:"version"`
	Batches

	Masks map[string]Kept `json:"masks,omitempty"` // as --skip takes them
	Ahead float64         `json:"ahead,omitempty"` // seconds saved up for finding out about masks
	Flash *Flash          `json:"flash,omitempty"` // nil = not measured
}

// Batches is what was found out about decoding several tokens of an answer at once.
type Batches struct {
	Isolation llama.Isolation `json:"alone"`    // how batches come out as one token at a time
	Compared  uint            `json:"compared"` // bit n: a batch of n tokens was compared with its tokens alone
	Rounding  float64         `json:"rounding"` // of logits, at most
	Graph     float64         `json:"graph"`    // cost of a new graph, in the time of a token decoded alone
	Costs     map[int]float64 `json:"costs"`    // of batches, by their tokens, likewise
}

// MostRows is the longest batch of an answer's tokens: the longest draft, the last token
// taken, and one before it that is decoded again to compare with.
const MostRows = 18

// New is a file of which nothing is known yet.
func New() *File {
	return &File{Version: fileVersion, Batches: Batches{Isolation: llama.AttentionAlone}}
}

// fileVersion changes with the meaning of what is kept.
const fileVersion = 3

// valid tells whether what a file says can be.
func (l *File) valid() bool {
	ok := l.Version == fileVersion && l.Isolation >= llama.AttentionAlone && l.Isolation <= llama.AllAlone &&
		l.Compared < 1<<(MostRows+1) && l.Rounding >= 0 && l.Graph >= 0
	for n, cost := range l.Costs {
		ok = ok && n > 1 && n <= MostRows && cost > 0
	}
	ok = ok && (l.Flash == nil || l.Flash.valid())
	for _, mask := range l.Masks {
		ok = ok && mask.valid()
	}
	return ok
}

// Path is where a model's file is kept: in the user's cache folder, in
// a file for each model, library, processor, number of threads and kind of KV
// cache, on all of which times and rounding hang.
func Path(m *llama.Model, o *llama.ContextOptions, gpuLayers int, repack bool) (string, error) {
	model, err := router.FingerprintOf(m.Path)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for what decoding costs: %w", err)
	}
	threads := o.Threads
	if threads == 0 {
		threads = m.DefaultThreads()
	}
	machine := fnv.New64a()
	fmt.Fprintln(machine, llama.Release, llama.Version(), llama.SystemInfo(), threads, o.ThreadsBatch, o.NUBatch, o.KType, o.VType, o.Flash, gpuLayers, repack)
	for _, d := range llama.Devices() {
		fmt.Fprintln(machine, d.Name, d.Description, d.Kind)
	}
	name := fmt.Sprintf("%s-%016x.json", filepath.Base(model.String()), machine.Sum64())
	return filepath.Join(cache, "gallop", "costs", name), nil
}

// Read takes what a file keeps; nil = nothing that can be used, which is found
// out again.
func Read(path string) *File {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var l File
	if json.Unmarshal(data, &l) != nil || !l.valid() {
		return nil
	}
	return &l
}

// Write keeps l. Without the file everything works as well, so the error may be dropped.
func (l *File) Write(path string) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return files.Write(path, append(data, '\n'))
}
