//go:build unix

package preload

import (
	"os"

	"golang.org/x/sys/unix"
)

// inForeground reports whether the terminal's Ctrl-C goes to this process group.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
