package threads

import (
	"os"
	"strconv"
	"strings"
)

// Others is how many threads of other programs run or wait for a core at this moment, if the
// calling thread is the only one of its own that does; 0 where the system does not tell.
func Others() int {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	return othersOf(string(data))
}

// othersOf reads them from what the system tells, like "0.20 0.18 0.12 3/80 11206": the fourth
// field is threads that run and all there are.
func othersOf(loadavg string) int {
	fields := strings.Fields(loadavg)
	if len(fields) < 4 {
		return 0
	}
	running, _, _ := strings.Cut(fields[3], "/")
	n, err := strconv.Atoi(running)
	if err != nil {
		return 0
	}
	return max(n-1, 0)
}
