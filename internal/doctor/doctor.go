// Package doctor finds out whether all is there that gallop needs, and which
// command brings what is not.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/machine"
	"github.com/gallop-llm/gallop/internal/preload"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// Report is what [Examine] found. What it could not find out is zero.
type Report struct {
	OK     bool    `json:"ok"` // nothing that is needed is missing
	Checks []Check `json:"checks"`

	Library     string   `json:"library"`         // folder of llama.cpp's libraries
	Release     string   `json:"release"`         // that gallop is written for
	Version     string   `json:"library_version"` // the library's own word
	CPUModule   string   `json:"cpu_module"`      // file that llama.cpp chose for this processor
	CPUFeatures []string `json:"cpu_features"`
	Devices     []Device `json:"devices"`
	MemoryFree  uint64   `json:"memory_free"`     // main memory in bytes
	MemoryTotal uint64   `json:"memory_total"`    // main memory in bytes
	Cache       string   `json:"cache"`           // folder
	Config      string   `json:"config"`          // file
	Model       *Weights `json:"model,omitempty"` // that was asked about
}

// Weights tells how much main memory a model needs for its weights on the CPU.
type Weights struct {
	Path     string `json:"path"`
	Bytes    uint64 `json:"bytes"`    // resident while nothing is skipped
	Released uint64 `json:"released"` // of these, what the profile's deepest set gives back; 0 = there is no profile
}

// Device is something to compute on.
type Device struct {
	Name        string           `json:"name"`
	Description string           `json:"description"`
	Kind        llama.DeviceKind `json:"kind"`
	Free        uint64           `json:"memory_free"`  // in bytes
	Total       uint64           `json:"memory_total"` // in bytes
}

// Status says what a check came to.
type Status string

// What a check can come to.
const (
	OK      Status = "ok"
	Note    Status = "note"    // absent, and not needed for now
	Missing Status = "missing" // gallop cannot work without
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Text   string `json:"text"`
	Fix    string `json:"fix,omitempty"` // a command, or what else to do
}

// Examine loads llama.cpp and looks at everything. config is where the
// configuration file usually is, "" for nowhere; model a GGUF file whose memory and
// vocabulary shortlist are of interest, "" for none.
func Examine(config, model string) *Report {
	r := &Report{OK: true, Release: llama.Release, CPUFeatures: []string{}, Devices: []Device{}, Config: config}
	r.checkRuntime()
	loaded := r.checkLibrary()
	if loaded {
		r.checkCPU()
		r.checkDevices()
	}
	r.checkMemory()
	fits := model == "" || r.checkModel(model)
	if loaded && fits {
		r.checkShortlist(model)
	}
	r.checkPreload()
	r.checkPaths()
	return r
}

func (r *Report) add(name string, status Status, fix, format string, args ...any) {
	r.OK = r.OK && status != Missing
	r.Checks = append(r.Checks, Check{Name: name, Status: status, Text: fmt.Sprintf(format, args...), Fix: fix})
}

// checkLibrary finds and loads the libraries. loaded is whether they work.
func (r *Report) checkLibrary() (loaded bool) {
	path, err := llama.FindLibrary(libs.SearchPath())
	if err != nil {
		if dir := os.Getenv(llama.EnvLibrary); dir != "" {
			r.add("libraries", Missing, "unset "+llama.EnvLibrary, "%s names %s, which has no llama.cpp libraries", llama.EnvLibrary, dir)
		} else {
			r.add("libraries", Missing, "gallop setup", "llama.cpp's libraries are not installed")
		}
		return false
	}
	r.Library = filepath.Dir(path)
	r.add("libraries", OK, "", "%s (%s)", r.Library, foundBy(r.Library))
	skipped, err := libs.Load()
	if err != nil {
		r.add("layout", Missing, "", "%s", err)
		return false
	}
	r.Version = llama.Version()
	r.add("layout", OK, "", "llama.cpp %s has the layout of %s, which gallop is written for", r.Version, strings.Join(llama.Releases, " and "))
	if err := llama.MasksAvailable(); err != nil {
		r.add("masks", Missing, "", "%s", err)
	} else {
		r.add("masks", OK, "", "layers can be skipped")
	}
	if llama.Isolates() {
		r.add("lossless", OK, "", "drafts do not change an answer")
	} else {
		r.add("lossless", Note, "", "drafts do not change an answer but for rounding at a near-tie: on %s a batch cannot be computed as single tokens", runtime.GOOS)
	}
	for _, problem := range skipped {
		r.add("GPU module", Note, "", "%s", problem)
	}
	return true
}

// foundBy tells why the libraries are looked for in dir.
func foundBy(dir string) string {
	if os.Getenv(llama.EnvLibrary) != "" {
		return "named by " + llama.EnvLibrary
	}
	cache, err := os.UserCacheDir()
	if err == nil && strings.HasPrefix(dir, cache+string(filepath.Separator)) {
		return "from `gallop setup`"
	}
	return "beside the program"
}

func (r *Report) checkCPU() {
	r.CPUModule = loadedCPUModule()
	if r.CPUModule == "" {
		r.add("CPU module", Note, "", "not known on %s", runtime.GOOS)
	} else {
		r.add("CPU module", OK, "", "%s", r.CPUModule)
	}
	r.CPUFeatures = features(llama.SystemInfo())
	r.add("CPU features", OK, "", "%s", strings.Join(r.CPUFeatures, " "))
}

// features lists what is on in llama.cpp's "CPU : SSE3 = 1 | AVX512 = 0 | …".
func features(info string) []string {
	on := []string{}
	for part := range strings.SplitSeq(info, "|") {
		if name, ok := strings.CutSuffix(strings.TrimSpace(part), " = 1"); ok {
			on = append(on, strings.TrimPrefix(name, "CPU : "))
		}
	}
	return on
}

func (r *Report) checkDevices() {
	gpu := false
	for _, d := range llama.Devices() {
		r.Devices = append(r.Devices, Device{Name: d.Name, Description: d.Description, Kind: d.Kind, Free: d.FreeMemory, Total: d.TotalMemory})
		gpu = gpu || d.IsGPU()
		if d.Kind == llama.CPU { // its memory is the main memory
			r.add("device", OK, "", "%s: %s", d.Name, d.Description)
			continue
		}
		r.add("device", OK, "", "%s: %s (%s), %s of %s free", d.Name, d.Description, d.Kind,
			humanize.IBytes(d.FreeMemory), humanize.IBytes(d.TotalMemory))
	}
	if !gpu {
		r.add("GPU", Note, "gallop setup --device vulkan (or cuda)", "none in use")
	}
}

func (r *Report) checkMemory() {
	r.MemoryFree, r.MemoryTotal = machine.Memory()
	switch {
	case r.MemoryTotal == 0:
		r.add("memory", Note, "", "not known on %s", runtime.GOOS)
		return
	case r.MemoryFree == 0:
		r.add("memory", OK, "", "%s", humanize.IBytes(r.MemoryTotal))
		return
	}
	r.add("memory", OK, "", "%s of %s free", humanize.IBytes(r.MemoryFree), humanize.IBytes(r.MemoryTotal))
}

// checkModel looks at a model's weights. ok is whether the file can be read.
func (r *Report) checkModel(path string) (ok bool) {
	m, err := inspect.Read(path)
	if err != nil {
		r.add("model", Missing, "", "%s", err)
		return false
	}
	r.Model = &Weights{Path: path, Bytes: m.TensorBytes}
	text := humanize.IBytes(m.TensorBytes) + " of weights"
	if found, ok := router.Find(path); ok {
		p, err := router.Read(found)
		if err != nil {
			r.add("profile", Note, "gallop calibrate -m "+path, "%s", err)
			p = &router.Profile{}
		}
		var sizes search.Sizes
		for _, l := range m.Layers {
			sizes.Attention = append(sizes.Attention, l.Attention)
			sizes.FeedForward = append(sizes.FeedForward, l.FeedForward)
		}
		for _, c := range p.Candidates {
			r.Model.Released = max(r.Model.Released, sizes.Bytes(c.Mask))
		}
		if p.Defaults.Off {
			text += "; its profile saves too little to be used unless asked for"
		}
		text += fmt.Sprintf("; with --release-skipped the deepest set of its profile needs %s of them", humanize.IBytes(m.TensorBytes-r.Model.Released))
	}
	if r.MemoryFree != 0 && m.TensorBytes > r.MemoryFree {
		r.add("model", Note, "--release-skipped, or a smaller quantisation", "%s: more than the memory that is free", text)
		return true
	}
	r.add("model", OK, "", "%s", text)
	return true
}

// checkShortlist tells what becomes of the vocabulary shortlist of a model, "" for the demo.
func (r *Report) checkShortlist(path string) {
	of := ""
	if path == "" {
		var err error
		if path, err = demo.Path(); err != nil {
			return // checkPaths says so
		}
		of = " (demo model)"
	}
	dir, err := shortlist.Dir()
	if err != nil {
		return
	}
	m, err := llama.LoadModel(context.Background(), path, &llama.ModelOptions{VocabOnly: true})
	if err != nil {
		r.add("shortlist", Note, "", "%s", err)
		return
	}
	defer m.Close()
	status, fix := Note, ""
	text, has := shortlist.Outlook(m, dir)
	switch {
	case has && slices.ContainsFunc(r.Devices, func(d Device) bool { return d.Kind == llama.GPU || d.Kind == llama.IGPU }):
		text, fix = "none on a GPU; on the CPU: "+text, "-ngl 0"
	case has:
		status = OK
	}
	r.add("shortlist", status, fix, "%s%s", text, of)
}

func (r *Report) checkPreload() {
	if runtime.GOOS != "linux" {
		r.add("preload", Note, "", "`gallop exec` works on Linux only")
		return
	}
	path, err := preload.FindLibrary(preload.SearchPath())
	if err != nil {
		r.add("preload", Note, "make preload", "no libgallop-skip.so; only `gallop exec` needs it")
		return
	}
	r.add("preload", OK, "", "%s", path)
}

func (r *Report) checkPaths() {
	cache, err := os.UserCacheDir()
	if err != nil {
		r.add("cache", Note, "set HOME or XDG_CACHE_HOME", "there is no place for it")
	} else {
		r.Cache = filepath.Join(cache, "gallop")
		r.add("cache", OK, "", "%s", r.Cache)
	}
	_, err = os.Stat(r.Config)
	switch {
	case r.Config == "":
		r.add("configuration", Note, "set HOME or XDG_CONFIG_HOME", "there is no place for it")
	case errors.Is(err, os.ErrNotExist):
		r.add("configuration", Note, "", "none; it would be %s", r.Config)
	default:
		r.add("configuration", OK, "", "%s", r.Config)
	}
}

var marks = map[Status]string{OK: "✓", Note: "·", Missing: "✗"}

// WriteText writes the checks as a table.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%s %-14s %s\n", marks[c.Status], c.Name, c.Text)
		if c.Fix != "" {
			fmt.Fprintf(&b, "  %-14s → %s\n", "", c.Fix)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
