package llama

/*
#cgo CFLAGS: -std=c11 -O2 -Wall -Wextra -Wno-unused-parameter -I${SRCDIR}/../third_party/llama.cpp/include -I${SRCDIR}/../third_party/layerskip
#cgo linux LDFLAGS: -ldl -rdynamic
#cgo windows LDFLAGS: -static
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
)

// EnvLibrary names the environment variable with the folder of llama.cpp's
// libraries; it goes before every other place.
const EnvLibrary = "GALLOP_LIB"

// Release is the llama.cpp release that this package is written for.
const Release = "v0.5.0"

// Releases are those whose layout is the same in all that this package uses, the oldest
// first: macOS and Windows have libraries of the first.
var Releases = []string{"v0.4.0", Release}

var library struct {
	sync.Mutex
	dir    string // folder of the opened libllama; "" = not loaded
	failed error  // a foreign library was opened: it cannot be closed and replaced
}

// live counts the C objects that this package owns; tests expect it to return to 0.
var live atomic.Int64

// Live is the number of models, contexts, batches, samplers and adapters that
// are open: tests compare it to find leaks.
func Live() int { return int(live.Load()) }

// SearchPath lists the folders where [Load] looks for the libraries, in order:
// $GALLOP_LIB, beside the executable, and the folders in cache.
func SearchPath(cache ...string) []string {
	if dir := os.Getenv(EnvLibrary); dir != "" {
		return []string{dir}
	}
	var dirs []string
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		bin := filepath.Dir(exe)
		dirs = append(dirs, bin, filepath.Join(bin, "..", "lib", "gallop"))
	}
	return append(dirs, cache...)
}

// FindLibrary returns the path of libllama in the first of dirs that holds it.
// The error wraps [ErrNoLibrary].
func FindLibrary(dirs []string) (string, error) {
	pattern := map[string]string{"darwin": "libllama.*dylib", "windows": "llama.*dll"}[runtime.GOOS]
	if pattern == "" {
		pattern = "libllama.*so*"
	}
	for _, dir := range dirs {
		// The published files carry the release in their names.
		if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) > 0 {
			slices.Sort(found)
			return filepath.Abs(found[len(found)-1])
		}
	}
	if dir := os.Getenv(EnvLibrary); dir != "" && slices.Contains(dirs, dir) {
		return "", fmt.Errorf("%w in %s, the folder that %s names: unset it and run `gallop setup`", ErrNoLibrary, dir, EnvLibrary)
	}
	return "", fmt.Errorf("%w (looked in %s): run `gallop setup`", ErrNoLibrary, strings.Join(dirs, ", "))
}

// Load opens llama.cpp's libraries, found in the first of dirs that holds them,
// with the CPU module that suits this machine and every GPU module beside it.
// A process has one library: later calls return nil without a second look. Where
// llama.cpp itself would abort, as it does after an error of a GPU, the process ends
// with status 1 and the reason on stderr.
// The error wraps [ErrNoLibrary] or [ErrForeignLibrary].
func Load(dirs []string) error {
	library.Lock()
	defer library.Unlock()
	if library.dir != "" || library.failed != nil {
		return library.failed
	}
	path, err := FindLibrary(dirs)
	if err != nil {
		return err
	}
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var why C.struct_gallop_text
	if !C.gallop_open(cpath, &why) {
		library.failed = fmt.Errorf("%w (%s): %s: %s; run `gallop setup` and unset %s to use the right one",
			ErrForeignLibrary, strings.Join(Releases, " or "), path, C.GoString(&why.text[0]), EnvLibrary)
		return library.failed
	}
	C.gallop_log_to_go()
	cdir := C.CString(filepath.Dir(path))
	defer C.free(unsafe.Pointer(cdir))
	C.ggml_backend_load_all_from_path(cdir)
	C.llama_backend_init()
	if len(devices()) == 0 {
		library.failed = fmt.Errorf("%w (%s): no CPU module in %s suits this machine; run `gallop setup`",
			ErrForeignLibrary, strings.Join(Releases, " or "), filepath.Dir(path))
		return library.failed
	}
	library.dir = filepath.Dir(path)
	return nil
}

// LoadBackend adds a device module (libggml-vulkan.so, libggml-cuda.so) to the
// loaded library. Models loaded afterwards can use its devices.
func LoadBackend(path string) error {
	if Dir() == "" {
		return ErrNotLoaded
	}
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var why C.struct_gallop_text
	if C.gallop_load_backend(cpath, &why) == nil {
		return cause(fmt.Errorf("the device module %s cannot be loaded: a driver or library that it needs is missing", path), &why)
	}
	return nil
}

// Dir returns the folder of the loaded library, "" before [Load].
func Dir() string {
	library.Lock()
	defer library.Unlock()
	return library.dir
}

// Version returns the loaded library's own version text, "" before [Load].
func Version() string {
	if Dir() == "" {
		return ""
	}
	return C.GoString(C.llama_version())
}

// SystemInfo returns llama.cpp's list of the CPU features in use.
func SystemInfo() string {
	if Dir() == "" {
		return ""
	}
	return C.GoString(C.llama_print_system_info())
}

// MasksAvailable reports whether the skip hook stands between libllama and
// libggml in this process. Without it only empty masks can be decoded.
func MasksAvailable() error {
	if Dir() == "" {
		return ErrNotLoaded
	}
	if C.gallop_unhooked != nil {
		return fmt.Errorf("%w: the hook is not in the way of this library's calls: %s", ErrMask, C.GoString(C.gallop_unhooked))
	}
	return nil
}

// DeviceKind tells what a device is.
type DeviceKind string

// Kinds of devices.
const (
	CPU         DeviceKind = "CPU"
	GPU         DeviceKind = "GPU"
	IGPU        DeviceKind = "integrated GPU"
	Accelerator DeviceKind = "accelerator"
)

// Device is something that llama.cpp can compute on.
type Device struct {
	Name        string     // "CPU", "Vulkan0"
	Description string     // the hardware's own name
	Kind        DeviceKind // what it is
	FreeMemory  uint64     // in bytes
	TotalMemory uint64     // in bytes
}

// IsGPU tells whether layers can go there.
func (d Device) IsGPU() bool { return d.Kind == GPU || d.Kind == IGPU }

// Devices lists what the loaded library can compute on, the CPU included. It is
// empty before [Load].
func Devices() []Device {
	if Dir() == "" {
		return nil
	}
	return devices()
}

func devices() []Device {
	kinds := []DeviceKind{CPU, GPU, IGPU, Accelerator}
	var devices []Device
	for i := C.size_t(0); i < C.ggml_backend_dev_count(); i++ {
		dev := C.ggml_backend_dev_get(i)
		var free, total C.size_t
		C.ggml_backend_dev_memory(dev, &free, &total)
		kind := Accelerator
		if k := int(C.ggml_backend_dev_type(dev)); k < len(kinds) {
			kind = kinds[k]
		}
		devices = append(devices, Device{
			Name:        C.GoString(C.ggml_backend_dev_name(dev)),
			Description: C.GoString(C.ggml_backend_dev_description(dev)),
			Kind:        kind,
			FreeMemory:  uint64(free),
			TotalMemory: uint64(total),
		})
	}
	return devices
}

// threadBytes is how many bytes of weights there must be for each thread: threads
// wait for each other after every one of some hundred graph nodes, which takes as long
// as this many bytes' share of a node.
const threadBytes = 2 << 20

// DefaultThreads is how many threads suit the model on this machine: one for each
// physical core, fewer for a very small model.
func (m *Model) DefaultThreads() int {
	return max(1, min(DefaultThreads(), int(m.Size/threadBytes)))
}

// DefaultThreads is the number of physical cores: llama.cpp gains nothing from
// a second thread on the same core.
func DefaultThreads() int {
	lists, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list")
	cores := map[string]bool{}
	for _, list := range lists {
		if siblings, err := os.ReadFile(list); err == nil {
			cores[string(siblings)] = true
		}
	}
	// A container may be allowed fewer CPUs than the machine has.
	if n := runtime.GOMAXPROCS(0); len(cores) == 0 || len(cores) > n {
		return n
	}
	return len(cores)
}

// cause turns an error text of C into a Go error that wraps kind.
func cause(kind error, why *C.struct_gallop_text) error {
	text := trimLog(C.GoString(&why.text[0]))
	if text == "" {
		return kind
	}
	return fmt.Errorf("%w: %s", kind, text)
}

// escapes is how often a call into llama.cpp was left in its middle, as it would have
// ended the process: 0 unless our own checks miss something.
func escapes() int { return int(C.gallop_escapes()) }

// trimLog takes C functions' names, the line end and the spaces of tables off a
// line of llama.cpp's log.
func trimLog(line string) string {
	line = strings.Join(strings.Fields(line), " ")
	for {
		name, rest, ok := strings.Cut(line, ": ")
		if !ok || !strings.HasPrefix(name, "error ") && strings.ContainsAny(name, " /") {
			return line
		}
		line = rest
	}
}
