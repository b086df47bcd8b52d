//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// prepareConsole has nothing to do: terminals understand escape sequences and UTF-8.
func prepareConsole() {}

// takesFiles tells whether files can be made in a folder.
func takesFiles(folder string) bool { return unix.Access(folder, unix.W_OK) == nil }

// ownFile is f by another number, or f itself where there are no more.
func ownFile(f *os.File) *os.File {
	if fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3); err == nil {
		return os.NewFile(uintptr(fd), f.Name())
	}
	return f
}

// takeLongLines has a terminal keep whatever is typed while nobody reads it. As long as it
// edits lines itself, it cuts them off at some thousand bytes.
func takeLongLines(f *os.File) {
	t, err := unix.IoctlGetTermios(int(f.Fd()), getTermios)
	if err != nil {
		return
	}
	t.Lflag &^= unix.ICANON
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	_ = unix.IoctlSetTermios(int(f.Fd()), setTermios, t)
}

// holdsSomething tells whether a pipe has bytes that nobody has read yet.
func holdsSomething(f *os.File) bool {
	poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0 && poll[0].Revents&unix.POLLIN != 0
}
