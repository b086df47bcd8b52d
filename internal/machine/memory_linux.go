package machine

import (
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// Memory is how much main memory is free, the system's caches included, and how much there
// is, in bytes; 0 = the system does not say. Where the program's container or service may have
// less, it is that.
func Memory() (free, total uint64) {
	limit := memoryLimit(os.DirFS("/"))
	info := memory(os.DirFS("/"))
	return min(info["MemAvailable"], limit), min(info["MemTotal"], limit)
}

// Swap is how much swap space is free, and how much there is, in bytes.
func Swap() (free, total uint64) {
	info := memory(os.DirFS("/"))
	return info["SwapFree"], info["SwapTotal"]
}

// memory reads bytes out of Linux's /proc/meminfo, whose unit is 1024 bytes.
func memory(root fs.FS) map[string]uint64 {
	bytes := map[string]uint64{}
	info, _ := fs.ReadFile(root, "proc/meminfo")
	for line := range strings.Lines(string(info)) {
		name, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			if n, err := strconv.ParseUint(fields[0], 10, 54); err == nil {
				bytes[name] = n * 1024
			}
		}
	}
	return bytes
}

// memoryLimit is the smallest bound on the program's control group and those above, in bytes. Linux
// describes both versions in admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
func memoryLimit(root fs.FS) uint64 {
	limit := uint64(math.MaxUint64)
	groups, _ := fs.ReadFile(root, "proc/self/cgroup") // where there is none, nothing is bounded
	for line := range strings.Lines(string(groups)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		top, file := "sys/fs/cgroup", "memory.max"
		switch controllers {
		case "":
		case "memory":
			top, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// A container sees its own group at the top, whatever its path says.
		for group = path.Clean("/" + group); ; group = path.Dir(group) {
			text, _ := fs.ReadFile(root, path.Join(top, group, file))
			if bytes, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil { // not "max"
				limit = min(limit, bytes)
			}
			if group == "/" {
				break
			}
		}
	}
	return limit
}
