package doctor

import (
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// runtimeDLLs are what llama.cpp's libraries need of the Visual C++ runtime.
var runtimeDLLs = []string{"MSVCP140.dll", "VCRUNTIME140.dll", "VCRUNTIME140_1.dll"}

// checkRuntime looks for Microsoft's C++ library, which a bare Windows lacks.
func (r *Report) checkRuntime() {
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	var missing []string
	for _, name := range runtimeDLLs {
		if name == "VCRUNTIME140_1.dll" && arch != "x64" {
			continue // there is none
		}
		if _, err := windows.LoadLibraryEx(name, 0, windows.LOAD_LIBRARY_SEARCH_SYSTEM32); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		r.add("Visual C++ runtime", Missing, "install https://aka.ms/vs/17/release/vc_redist."+arch+".exe",
			"%s: llama.cpp's libraries do not load without", strings.Join(missing, ", ")+" not found")
		return
	}
	r.add("Visual C++ runtime", OK, "", "%s", strings.Join(runtimeDLLs, ", "))
}

// loadedCPUModule is the file of ggml's CPU code in this process; "" = not known.
func loadedCPUModule() string {
	var modules [1024]windows.Handle
	var bytes uint32
	self := windows.CurrentProcess()
	if windows.EnumProcessModules(self, &modules[0], uint32(unsafe.Sizeof(modules)), &bytes) != nil {
		return ""
	}
	for _, m := range modules[:min(len(modules), int(bytes)/int(unsafe.Sizeof(modules[0])))] {
		var path [windows.MAX_LONG_PATH]uint16
		if _, err := windows.GetModuleFileName(m, &path[0], uint32(len(path))); err != nil {
			continue
		}
		if name := filepath.Base(windows.UTF16ToString(path[:])); strings.HasPrefix(name, "ggml-cpu") {
			return name
		}
	}
	return ""
}
