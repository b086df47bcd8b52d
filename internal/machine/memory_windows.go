package machine

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

var globalMemoryStatusEx = windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")

// memoryStatus is MEMORYSTATUSEX.
type memoryStatus struct {
	length, load                            uint32
	total, free                             uint64 // main memory
	totalWithSwap, freeWithSwap             uint64 // with the page files
	totalAddresses, freeAddresses, reserved uint64
}

func status() (s memoryStatus) {
	s.length = uint32(unsafe.Sizeof(s))
	if ok, _, _ := globalMemoryStatusEx.Call(uintptr(unsafe.Pointer(&s))); ok == 0 {
		return memoryStatus{}
	}
	return s
}

// Memory is how much main memory is free, the system's caches included, and how much there
// is, in bytes; 0 = the system does not say.
func Memory() (free, total uint64) {
	s := status()
	return s.free, s.total
}

// Swap is how much of the page files is free beside the main memory, and how much there is, in bytes.
func Swap() (free, total uint64) {
	s := status()
	return s.freeWithSwap - min(s.free, s.freeWithSwap), s.totalWithSwap - min(s.total, s.totalWithSwap)
}
