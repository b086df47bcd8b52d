package main

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// target is a system to build for.
type target struct {
	os, arch string
	cc       string // C compiler, with its flags; that of a target of this system is $CC or cc
}

var targets = []target{
	{"linux", "amd64", "x86_64-linux-gnu-gcc"},
	{"linux", "arm64", "aarch64-linux-gnu-gcc"},
	{"windows", "amd64", "x86_64-w64-mingw32-gcc"},
	{"darwin", "arm64", "clang -arch arm64"},
	{"darwin", "amd64", "clang -arch x86_64"},
}

func (t target) name() string { return t.os + "-" + t.arch }

func (t target) compiler() string {
	if t.os == runtime.GOOS && t.arch == runtime.GOARCH {
		return cmp.Or(os.Getenv("CC"), "cc")
	}
	return t.cc
}

// missing tells why the target cannot be built here.
func (t target) missing() error {
	if t.os == "darwin" && runtime.GOOS != "darwin" {
		return fmt.Errorf("it is built on a Mac")
	}
	program := strings.Fields(t.compiler())[0]
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("%s is not here", program)
	}
	return nil
}

// file is a file of an archive.
type file struct {
	name string // with slashes
	mode fs.FileMode
	data []byte
}

// readFiles reads what lies below dir, and puts prefix in front of the names.
func readFiles(dir, prefix string) (files []file, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files = append(files, file{prefix + filepath.ToSlash(name), 0o644, data})
		return err
	})
	return files, err
}

// run starts a program with more in its environment. What it prints is part of the error.
func run(env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// flags are the linker's. No folder of this machine and no build's own mark is in the
// program.
func (r *release) flags() string {
	return strings.Join([]string{
		"-s -w -buildid=",
		"-X main.version=" + r.version,
		"-X main.commit=" + r.commit,
		"-X github.com/gallop-llm/gallop/libs.registry=" + r.registry,
	}, " ")
}

// makeShare writes manual pages and completions, by a program for this system.
func (r *release) makeShare(temp string) ([]file, error) {
	program, dir := filepath.Join(temp, "share-writer"), filepath.Join(temp, "share")
	if err := run(nil, "go", "build", "-tags", "man", "-trimpath", "-ldflags", r.flags(), "-o", program, "./cmd/gallop"); err != nil {
		return nil, err
	}
	env := []string{"HOME=~", "XDG_CONFIG_HOME=", "GALLOP_SHARE=" + dir, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.date.Unix())}
	if err := run(env, program); err != nil {
		return nil, err
	}
	return readFiles(dir, "share/")
}

// build compiles for a system and gives the files of its archive, and the program's path.
func (r *release) build(t target, temp string) (files []file, program string, err error) {
	program = filepath.Join(temp, "gallop")
	if t.os == "windows" {
		program += ".exe"
	}
	env := []string{"GOOS=" + t.os, "GOARCH=" + t.arch, "CGO_ENABLED=1", "CGO_CFLAGS=-O2", "CC=" + t.compiler()}
	if err := run(env, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", r.flags(), "-o", program, "./cmd/gallop"); err != nil {
		return nil, "", err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, "", err
	}
	bin := "bin/"
	if t.os == "windows" {
		bin = ""
	} else {
		files = slices.Clone(r.share)
	}
	files = append(files, file{bin + filepath.Base(program), 0o755, data})
	if t.os == "linux" {
		if err := run(nil, "make", "--no-print-directory", "preload", "BUILD="+temp, "CC="+t.compiler()); err != nil {
			return nil, "", err
		}
		data, err := os.ReadFile(filepath.Join(temp, "libgallop-skip.so"))
		if err != nil {
			return nil, "", err
		}
		files = append(files, file{"lib/gallop/libgallop-skip.so", 0o644, data})
	}
	for _, name := range []string{"LICENSE", "README.md", "CHANGELOG.md"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, "", err
		}
		files = append(files, file{name, 0o644, data})
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return files, program, nil
}
