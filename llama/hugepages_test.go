package llama_test

import (
	"bufio"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// TestHugePages wants the system to know, of the KV cache's buffer, that huge pages are welcome.
func TestHugePages(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("huge pages are asked for on Linux only")
	}
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage/enabled"); err != nil {
		t.Skip("this kernel has no transparent huge pages")
	}
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Write(t, randmodel.Small("llama")))
	before := welcome(t)
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 1 << 18, Threads: 1})
	require.NoError(t, err)
	defer c.Close()
	require.Greater(t, welcome(t), before)
}

// welcome counts the mappings of the process that may lie in huge pages.
func welcome(t *testing.T) (n int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	require.NoError(t, err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if flags, ok := strings.CutPrefix(s.Text(), "VmFlags:"); ok && strings.Contains(flags, " hg") {
			n++
		}
	}
	return n
}
