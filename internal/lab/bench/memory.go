package bench

import (
	"os"
	"strconv"
	"strings"
)

// resident gives the bytes of this process in memory now, and the most that
// there were since [ResetPeak]; 0 where the system does not tell.
func resident() (now, peak uint64) {
	const file = "/proc/self/status"
	return kilobytes(file, "VmRSS:"), kilobytes(file, "VmHWM:")
}

// ResetPeak makes the peak of resident memory count from now on. Where the
// system cannot, it stays that of the whole process.
func ResetPeak() {
	const peakOnly = "5"
	_ = os.WriteFile("/proc/self/clear_refs", []byte(peakOnly), 0)
}

// kilobytes gives the figure behind a word of one of Linux's status files, in
// bytes; 0 when it is not there.
func kilobytes(file, word string) uint64 {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == word {
			n, _ := strconv.ParseUint(fields[1], 10, 54)
			return n * 1024
		}
	}
	return 0
}
