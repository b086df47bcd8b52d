package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/internal/files"
)

// historyLines is how many lines the history keeps.
const historyLines = 1000

// historyPath is where the lines that were typed are kept, "" where the system names no
// such place.
func historyPath() string {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err != nil || !filepath.IsAbs(home) {
			return ""
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "gallop", "history")
}

// historyFile keeps the lines that were typed, each as a JSON string on a line of its own,
// readable for its owner alone.
type historyFile struct{ path string }

// read gives the last lines, the oldest first. A file that has become long is made short.
func (h *historyFile) read() (lines []string) {
	f, err := os.Open(h.path)
	if err != nil {
		return nil
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, maxLine)
	for scanner.Scan() {
		var line string
		if json.Unmarshal(scanner.Bytes(), &line) == nil && line != "" {
			lines = append(lines, line)
		}
	}
	if n := len(lines); n > 2*historyLines {
		lines = slices.Clone(lines[n-historyLines:])
		var text strings.Builder
		for _, line := range lines {
			text.Write(historyLine(line))
		}
		_ = files.WritePrivate(h.path, []byte(text.String()))
	}
	return lines[max(len(lines)-historyLines, 0):]
}

// add keeps a line at once, so that it is there however the chat ends.
func (h *historyFile) add(line string) error {
	if err := os.MkdirAll(filepath.Dir(h.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(h.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(historyLine(line)) // in one call: other chats may write, too
	return errors.Join(err, f.Close())
}

func historyLine(line string) []byte {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err) // every string is JSON
	}
	return append(text, '\n')
}
