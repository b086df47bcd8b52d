package machine

import (
	"os"
	"strconv"
	"strings"
)

// Memory is how much main memory is free, the system's caches included, and how much there
// is, in bytes; 0 = the system does not say.
func Memory() (free, total uint64) {
	info, _ := os.ReadFile("/proc/meminfo")
	return memory(string(info))
}

// memory reads bytes out of Linux's /proc/meminfo, whose unit is 1024 bytes.
func memory(info string) (free, total uint64) {
	for line := range strings.Lines(info) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 54)
		switch {
		case err != nil:
		case fields[0] == "MemAvailable:":
			free = n * 1024
		case fields[0] == "MemTotal:":
			total = n * 1024
		}
	}
	return free, total
}
