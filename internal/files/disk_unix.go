//go:build linux || darwin

package files

import (
	"fmt"
	"syscall"
)

// CheckRoom finds out before gigabytes are written that they will not fit into
// folder. The error wraps ENOSPC. Where the system does not tell, the writing itself
// finds out.
func CheckRoom(folder string, bytes uint64) error {
	var disk syscall.Statfs_t
	if syscall.Statfs(folder, &disk) != nil || disk.Blocks == 0 {
		return nil
	}
	if free := uint64(disk.Bavail) * uint64(disk.Bsize); free < bytes {
		return fmt.Errorf("%w, %d bytes are free", syscall.ENOSPC, free)
	}
	return nil
}
