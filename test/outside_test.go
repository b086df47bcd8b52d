// Package test holds tests of the whole, from the outside.
package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
)

// program is somebody's: the public packages are all that it can see.
const program = `package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/gallop-llm/gallop"
)

func main() {
	model, err := gallop.Open(context.Background(), os.Args[1], nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	ask := gallop.Request{Messages: []gallop.Message{{Role: "user", Content: "Who are you?"}}}
	for delta, err := range model.Stream(context.Background(), ask) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q\n", delta.Text)
	}
}
`

// TestOutsideModule builds a program in a module of its own against this checkout, as go get
// and as go mod vendor would have it, and lets it answer.
func TestOutsideModule(t *testing.T) {
	llamatest.Library(t)
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	require.NoError(t, err)
	write("go.sum", string(sums))
	write("main.go", program)
	write("go.mod", "module example.com/outside\n\ngo 1.26\n\nrequire github.com/gallop-llm/gallop v0.0.0\n\nreplace github.com/gallop-llm/gallop => "+root+"\n")
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off", "CGO_ENABLED=1")
		var failed strings.Builder
		cmd.Stderr = &failed
		out, err := cmd.Output()
		require.NoError(t, err, failed.String())
		return string(out)
	}
	model := filepath.Join(root, "demo", "gallop-demo.gguf")
	answers := func(binary string) {
		t.Helper()
		pieces := strings.Split(strings.TrimSpace(run(binary, model)), "\n")
		require.Greater(t, len(pieces), 1, "it streams")
		text := ""
		for _, piece := range pieces {
			part, err := strconv.Unquote(piece)
			require.NoError(t, err)
			text += part
		}
		require.Equal(t, "I am Gallop, a small language model that runs on your own computer.", text)
	}
	run("go", "build", "-mod=mod", "-o", "plain", ".")
	answers("./plain")
	run("go", "mod", "vendor")
	require.FileExists(t, filepath.Join(dir, "vendor", "github.com", "gallop-llm", "gallop", "third_party", "layerskip", "rows.c"))
	run("go", "build", "-mod=vendor", "-o", "vendored", ".")
	answers("./vendored")
}
