package chat

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

// learned is what was found out about a model on a machine, as it is kept in a file:
// the next process need not find it out again.
type learned struct {
	Version  int             `json:"version"`
	Alone    llama.Alone     `json:"alone"`    // how batches come out as one token at a time
	Compared uint            `json:"compared"` // sizes of batches; see [compared]
	Rounding float64         `json:"rounding"` // of logits, at most
	Graph    float64         `json:"graph"`    // cost of a new graph, in the time of a token decoded alone
	Costs    map[int]float64 `json:"costs"`    // of batches, by their tokens, likewise

	Masks map[string]maskKept `json:"masks,omitempty"` // as --skip takes them
	Ahead float64             `json:"ahead,omitempty"` // seconds saved up for finding out about masks
}

// learnedVersion changes with the meaning of what is kept.
const learnedVersion = 1

// valid tells whether what a file says can be.
func (l *learned) valid() bool {
	ok := l.Version == learnedVersion && l.Alone >= llama.AttendAlone && l.Alone <= llama.MultiplyAlone &&
		l.Compared < 1<<(mostRows+1) && l.Rounding >= 0 && l.Graph >= 0
	for n, cost := range l.Costs {
		ok = ok && n > 1 && n <= mostRows && cost > 0
	}
	for _, mask := range l.Masks {
		ok = ok && mask.valid()
	}
	return ok
}

// LearnedPath is where [Options].Learned is kept: in the user's cache folder, in
// a file for each model, library, processor, number of threads and kind of KV
// cache, on all of which times and rounding hang.
func LearnedPath(m *llama.Model, o *llama.ContextOptions, gpuLayers int, repack bool) (string, error) {
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

// readLearned takes what a file keeps; nil = nothing that can be used, which is found
// out again.
func readLearned(path string) *learned {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var l learned
	if json.Unmarshal(data, &l) != nil || !l.valid() {
		return nil
	}
	return &l
}

// recall takes in what was learnt earlier.
func (s *Session) recall() {
	if l := readLearned(s.opts.Learned); l != nil {
		s.worth.recall(l.Masks, l.Ahead)
	}
}

// recall takes in what was learnt earlier of batches.
func (d *drafter) recall(l *learned) {
	if l == nil || l.Compared == 0 && len(l.Costs) == 0 {
		return
	}
	d.s.alone, d.same = l.Alone, compared{sizes: l.Compared, most: l.Rounding, anyway: l.Rounding > 0}
	d.pace.recall(l.Graph, l.Costs)
}

// keep writes what was learnt, if something was, and leaves the rest of the file as it
// is. Without the file everything works as well, so no error stops an answer.
func (s *Session) keep() {
	path, batches := s.opts.Learned, s.drafter != nil && s.drafter.learned
	if path == "" || !batches && !s.worth.fresh {
		return
	}
	l := readLearned(path)
	if l == nil {
		l = &learned{Version: learnedVersion, Alone: llama.AttendAlone}
	}
	if batches {
		s.drafter.keep(l)
	}
	if s.worth.fresh {
		l.Masks, l.Ahead = s.worth.keep(), s.worth.ahead
	}
	s.worth.fresh = false
	data, err := json.Marshal(l)
	if err == nil && os.MkdirAll(filepath.Dir(path), 0o755) == nil {
		files.Write(path, append(data, '\n'))
	}
}

// keep puts what was learnt of batches into l.
func (d *drafter) keep(l *learned) {
	d.learned = false
	l.Alone, l.Compared, l.Rounding, l.Graph, l.Costs = d.s.alone, d.same.sizes, d.same.most, d.pace.graph, map[int]float64{}
	for n, cost := range d.pace.cost {
		if d.pace.seen[n].n >= trusted {
			l.Costs[n] = cost
		}
	}
}
