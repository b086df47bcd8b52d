package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	kernel                     = windows.NewLazySystemDLL("kernel32.dll")
	setConsoleOutputCP         = kernel.NewProc("SetConsoleOutputCP")
	peekNamedPipe              = kernel.NewProc("PeekNamedPipe")
	utf8CodePage       uintptr = 65001
)

// prepareConsole has the console take escape sequences, and UTF-8 from C's code. Where
// output does not go to a console, nothing changes.
func prepareConsole() {
	setConsoleOutputCP.Call(utf8CodePage)
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		var mode uint32
		if windows.GetConsoleMode(windows.Handle(f.Fd()), &mode) == nil {
			_ = windows.SetConsoleMode(windows.Handle(f.Fd()), mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) // old ones lack it
		}
	}
}

// takesFiles tells whether files can be made in a folder.
func takesFiles(folder string) bool {
	f, err := os.CreateTemp(folder, ".gallop-*")
	if err != nil {
		return false
	}
	return f.Close() == nil && os.Remove(f.Name()) == nil
}

// ownFile is f itself: a reader that is gone ends no program on Windows, and C's code has
// file numbers of its own.
func ownFile(f *os.File) *os.File { return f }

// takeLongLines has nothing to do: a console keeps what is typed.
func takeLongLines(*os.File) {}

// holdsSomething tells whether a pipe has bytes that nobody has read yet.
func holdsSomething(f *os.File) bool {
	var n uint32
	ok, _, _ := peekNamedPipe.Call(f.Fd(), 0, 0, 0, uintptr(unsafe.Pointer(&n)), 0)
	return ok != 0 && n > 0
}
