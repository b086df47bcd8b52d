package machine

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

var globalMemoryStatusEx = windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")

// Memory is how much main memory is free, the system's caches included, and how much there
// is, in bytes; 0 = the system does not say.
func Memory() (free, total uint64) {
	var status struct { // MEMORYSTATUSEX
		length, load uint32
		total, free  uint64
		_            [5]uint64
	}
	status.length = uint32(unsafe.Sizeof(status))
	if ok, _, _ := globalMemoryStatusEx.Call(uintptr(unsafe.Pointer(&status))); ok == 0 {
		return 0, 0
	}
	return status.free, status.total
}
