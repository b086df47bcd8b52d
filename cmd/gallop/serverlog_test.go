package main

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestServerLog counts the lines that a reader who stands still misses, and takes late ones.
func TestServerLog(t *testing.T) {
	r, w := io.Pipe()
	l := newServerLog(w)
	for i := range logLines + 10 { // the first of them is with the reader, who does not read yet
		_, err := fmt.Fprintln(l, i)
		require.NoError(t, err)
	}
	read := make(chan string)
	go func() {
		all, _ := io.ReadAll(r)
		read <- string(all)
	}()
	l.Close()
	_, err := fmt.Fprintln(l, "late")
	require.NoError(t, err)
	w.Close()
	text := <-read
	require.True(t, strings.HasPrefix(text, "0\n"), text)
	require.Regexp(t, `gallop: (9|10) lines of the log could not be written`, text)
	require.Contains(t, text, fmt.Sprintf("\n%d\n", logLines-1))
	require.NotContains(t, text, "late")
}
