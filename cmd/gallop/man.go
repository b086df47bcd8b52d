//go:build man

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra/doc"
)

// A program built with the tag man writes the manual pages of all commands, and what
// completes its command lines in shells, into the folder $GALLOP_SHARE as systems have them
// below share, and ends. No release is such a program. SOURCE_DATE_EPOCH is the pages' date.
func init() {
	if err := writeShare(os.Getenv("GALLOP_SHARE")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func writeShare(dir string) error {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	date := time.Unix(seconds, 0).UTC()
	root := newRootCommand(os.Stdout)
	root.DisableAutoGenTag = true // the date of today
	var b bytes.Buffer
	for path, write := range map[string]func() error{
		"bash-completion/completions/gallop":    func() error { return root.GenBashCompletionV2(&b, true) },
		"zsh/site-functions/_gallop":            func() error { return root.GenZshCompletion(&b) },
		"fish/vendor_completions.d/gallop.fish": func() error { return root.GenFishCompletion(&b, true) },
	} {
		b.Reset()
		if err := write(); err != nil {
			return err
		}
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	pages := filepath.Join(dir, "man", "man1")
	if err := os.MkdirAll(pages, 0o755); err != nil {
		return err
	}
	header := &doc.GenManHeader{Section: "1", Date: &date, Source: "gallop " + version, Manual: "Gallop"}
	return doc.GenManTree(root, header, pages)
}
