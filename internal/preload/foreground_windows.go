package preload

// inForeground is of no use here: Run refuses first.
func inForeground() bool { return false }
