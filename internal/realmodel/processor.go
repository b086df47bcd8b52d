package realmodel

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Processor names what figures were measured on, as in "2 cores of AMD EPYC (AVX-512)".
func Processor() string {
	name := "an unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo") // empty where the system has none
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			name = strings.TrimSpace(value)
		}
	}
	if strings.Contains(string(info), "avx512f") {
		name += " (AVX-512)"
	}
	return fmt.Sprintf("%d cores of %s", runtime.NumCPU(), name)
}
