package llama

import (
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// fileMappings lists the process's mappings of files, which llama.cpp begins at the
// file's start.
func fileMappings() (all []mapping) {
	const mapped = 0x40000 // MEM_MAPPED
	var info windows.MemoryBasicInformation
	for at := uintptr(0); windows.VirtualQuery(at, &info, unsafe.Sizeof(info)) == nil; at = info.BaseAddress + info.RegionSize {
		end := info.BaseAddress + info.RegionSize
		switch {
		case info.Type != mapped:
		case len(all) > 0 && all[len(all)-1].start == info.AllocationBase:
			all[len(all)-1].end = end
		default:
			all = append(all, mapping{start: info.AllocationBase, end: end})
		}
	}
	return all
}

// canDrop: no way to give memory back was tested on Windows.
const canDrop = false

func dropPages(uintptr, uint64) error { return nil }

// mapBytes maps a whole file of so many bytes, read-only; unmapBytes ends that.
func mapBytes(f *os.File, size int) ([]byte, error) {
	section, err := windows.CreateFileMapping(windows.Handle(f.Fd()), nil, windows.PAGE_READONLY, 0, 0, nil)
	if err != nil {
		return nil, err
	}
	defer windows.CloseHandle(section) // the mapping stays
	addr, err := windows.MapViewOfFile(section, windows.FILE_MAP_READ, 0, 0, uintptr(size))
	if err != nil {
		return nil, err
	}
	var data *byte
	*(*uintptr)(unsafe.Pointer(&data)) = addr // no memory of Go's
	return unsafe.Slice(data, size), nil
}

func unmapBytes(data []byte) error {
	return windows.UnmapViewOfFile(uintptr(unsafe.Pointer(unsafe.SliceData(data))))
}
