package files

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// farAway is a byte that no file has: a lock there keeps no other process from reading.
const farAway = 1 << 30

// TryLock locks a file until it is closed, or gives [ErrLocked].
func TryLock(f *os.File) error {
	at := &windows.Overlapped{OffsetHigh: farAway}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return ErrLocked
	}
	return err
}
