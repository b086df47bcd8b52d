package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// typist enters a line after each pause, until there is enough.
type typist struct {
	pause  time.Duration
	enough func(lines int) bool
	lines  int
}

func (t *typist) Read(p []byte) (int, error) {
	time.Sleep(t.pause)
	if t.enough(t.lines) {
		return 0, io.EOF
	}
	t.lines++
	return copy(p, "one and two\n"), nil
}

// TestChatLearns calibrates while nobody types, and routes by what it has learnt.
func TestChatLearns(t *testing.T) {
	llamatest.Library(t)
	alone(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("GALLOP_LIB", llama.Dir())
	spec := randmodel.Small("llama")
	spec.Layers = 6
	model := llamatest.Write(t, spec)
	profile := router.DefaultPath(model)
	learn := func(t *testing.T, in io.Reader, more ...string) (code int, notes string) {
		var out, n bytes.Buffer
		code = run(append([]string{"chat", "-t", "1", "-n", "4", "-m", model, "--learn"}, more...), in, &out, &n)
		return code, n.String()
	}

	// A chat that ends at once leaves nothing behind but what was measured.
	code, notes := learn(t, &typist{pause: 100 * time.Millisecond, enough: func(n int) bool { return n == 2 }})
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "[calibrates while you read or type")
	require.NoFileExists(t, profile)

	started, finished := time.Now(), 0
	code, notes = learn(t, &typist{pause: 200 * time.Millisecond, enough: func(int) bool {
		require.Less(t, time.Since(started), 5*time.Minute)
		if p, err := router.Read(profile); err == nil && !calibrate.Unfinished(p) {
			finished++
		}
		return finished == 2 // the chat was told of it
	}})
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "[learnt: ")
	require.Contains(t, notes, "sets of layers")

	code, notes = learn(t, strings.NewReader("one\n"), "--quality", "0.5")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "[nothing to learn: "+profile)

	for _, other := range [][]string{{"--lossless"}, {"--skip", "2"}, {"--route", "off"}, {"--profile", profile}, {"--release-skipped"}} {
		code, notes = learn(t, strings.NewReader("one\n"), other...)
		require.Equal(t, exitUsage, code, notes)
		require.Contains(t, notes, "leave out --lossless", other)
	}
	code, _, notes = invoke(t, "", "run", "--learn", "hi")
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, "unknown flag: --learn")
}
