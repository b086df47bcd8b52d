package doctor

import (
	"os"
	"regexp"
)

// checkRuntime has nothing to look for here.
func (r *Report) checkRuntime() {}

// loadedCPUModule is the file of ggml's CPU code in this process; "" = not known.
func loadedCPUModule() string {
	maps, _ := os.ReadFile("/proc/self/maps")
	return cpuModule(string(maps))
}

var cpuModuleName = regexp.MustCompile(`(?m)/(libggml-cpu[^/\n]*)$`)

// cpuModule finds the file of ggml's CPU code in a process's memory map.
func cpuModule(maps string) string {
	found := cpuModuleName.FindStringSubmatch(maps)
	if found == nil {
		return ""
	}
	return found[1]
}
