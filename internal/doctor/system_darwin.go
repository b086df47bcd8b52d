package doctor

// checkRuntime has nothing to look for here.
func (r *Report) checkRuntime() {}

// loadedCPUModule is the file of ggml's CPU code in this process; "" = not known.
func loadedCPUModule() string { return "" }
