package files

import "errors"

// ErrLocked is returned by [TryLock] when another process, or another open file of this
// one, has the lock.
var ErrLocked = errors.New("another process has the lock")
