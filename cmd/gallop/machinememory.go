package main

import (
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/internal/machine"
)

// machineMemory is the machine's, or what the program's container or service may have of it, in
// bytes; 0 = the system does not say.
func machineMemory() uint64 {
	_, total := machine.Memory()
	return min(total, memoryLimit(os.DirFS("/")))
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
