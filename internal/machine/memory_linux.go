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
	root := os.DirFS("/")
	room, limit := memoryLimit(root)
	info := memory(root)
	return min(info["MemAvailable"], room), min(info["MemTotal"], limit)
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

// memoryLimit is the smallest bound on the program's control group and those above, in bytes, and
// the least room that they have left: what the system keeps of files that nobody uses is room, as
// it counts for them. Linux describes both versions in admin-guide/cgroup-v2.rst and
// cgroup-v1/memory.rst.
func memoryLimit(root fs.FS) (room, limit uint64) {
	room, limit = math.MaxUint64, math.MaxUint64
	groups, _ := fs.ReadFile(root, "proc/self/cgroup") // where there is none, nothing is bounded
	for line := range strings.Lines(string(groups)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		top, most, used, idle := "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
		switch controllers {
		case "":
		case "memory":
			top, most, used, idle = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
		default:
			continue
		}
		// A container sees its own group at the top, whatever its path says.
		for group = path.Clean("/" + group); ; group = path.Dir(group) {
			number := func(file, key string) (n uint64, ok bool) {
				text, _ := fs.ReadFile(root, path.Join(top, group, file))
				for line := range strings.Lines(string(text)) {
					if value, found := strings.CutPrefix(strings.TrimSpace(line), key); found {
						n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
						return n, err == nil // not "max"
					}
				}
				return 0, false
			}
			if bytes, ok := number(most, ""); ok {
				taken, _ := number(used, "")
				files, _ := number("memory.stat", idle+" ")
				taken -= min(files, taken)
				room, limit = min(room, bytes-min(taken, bytes)), min(limit, bytes)
			}
			if group == "/" {
				break
			}
		}
	}
	return room, limit
}
