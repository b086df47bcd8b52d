package machine

import "golang.org/x/sys/unix"

// Memory is how much main memory is free, which is never known here, and how much there is,
// in bytes; 0 = the system does not say.
func Memory() (free, total uint64) {
	total, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0, 0
	}
	return 0, total
}

// Swap is never known here: the system makes swap files as it needs them.
func Swap() (free, total uint64) { return 0, 0 }
