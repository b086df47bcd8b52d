//go:build unix

package llama

// #include "glue.h"
import "C"

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// fileMappings lists the process's shared read-only mappings of files. It is
// empty where the system does not tell, as macOS.
func fileMappings() (all []mapping) {
	maps, _ := os.ReadFile("/proc/self/maps")
	for line := range strings.Lines(string(maps)) {
		var m mapping
		var access, device string
		var inode uint64
		_, err := fmt.Sscanf(line, "%x-%x %s %x %s %d", &m.start, &m.end, &access, &m.offset, &device, &inode)
		if err == nil && access == "r--s" && inode != 0 {
			all = append(all, m)
		}
	}
	return all
}

// canDrop says whether dropPages does anything: where fileMappings finds a model.
const canDrop = true

// mapBytes maps a whole file of so many bytes, read-only; unmapBytes ends that.
func mapBytes(f *os.File, size int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
}

func unmapBytes(data []byte) error { return unix.Munmap(data) }

// dropPages gives whole pages back to the system: those of a file are read again,
// others are zeros then.
func dropPages(start uintptr, n uint64) error {
	if failed, err := C.gallop_drop(C.uintptr_t(start), C.size_t(n)); failed != 0 {
		return err
	}
	return nil
}
