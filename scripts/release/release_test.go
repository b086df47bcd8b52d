package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// built is a release of made-up files.
func built(t *testing.T) *release {
	t.Helper()
	r := &release{version: "v1.2.3", commit: "abc", date: time.Unix(1_700_000_000, 0).UTC(), out: t.TempDir()}
	for _, target := range targets {
		name := "gallop-1.2.3-" + target.name() + ".tar.gz"
		if target.os == "windows" {
			name = "gallop-1.2.3-" + target.name() + ".zip"
		}
		require.NoError(t, r.write(target, name, []byte(name)))
	}
	return r
}

func someFiles() []file {
	return []file{
		{"CHANGELOG.md", 0o644, []byte("changes")}, {"LICENSE", 0o644, []byte("MIT")}, {"README.md", 0o644, []byte("read")},
		{"bin/gallop", 0o755, []byte("#!/bin/sh\necho hello\n")}, {"lib/gallop/libgallop-skip.so", 0o644, []byte("so")},
		{"share/man/man1/gallop.1", 0o644, []byte(".TH GALLOP 1")}, {"share/zsh/site-functions/_gallop", 0o644, []byte("zsh")},
	}
}

func TestArchives(t *testing.T) {
	date := time.Unix(1_700_000_000, 0)
	data := tarball("gallop-1", someFiles(), date)
	require.Equal(t, data, tarball("gallop-1", someFiles(), date))
	unzipped, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	files := tar.NewReader(unzipped)
	var names []string
	for {
		h, err := files.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		names = append(names, h.Name)
		require.Zero(t, h.Uid)
		require.Equal(t, date.Unix(), h.ModTime.Unix())
		if h.Name == "gallop-1/bin/gallop" {
			require.EqualValues(t, 0o755, h.Mode)
		}
	}
	require.Contains(t, names, "gallop-1/bin/gallop")
	require.Less(t, slices.Index(names, "gallop-1/bin/"), slices.Index(names, "gallop-1/bin/gallop"), "a folder comes before what is in it")

	data = zipFile("gallop-1", someFiles(), date)
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	require.Len(t, z.File, len(someFiles()))
	require.Equal(t, "gallop-1/CHANGELOG.md", z.File[0].Name)
}

func TestDebianVersion(t *testing.T) {
	r := built(t)
	for version, want := range map[string]string{
		"v0.2.0": "0.2.0", "v0.2.0-rc.1": "0.2.0~rc.1", "48bde9d": "0~20231114.48bde9d", "48bde9d-dirty": "0~20231114.48bde9d~dirty",
	} {
		r.version = version
		require.Equal(t, want, r.debianVersion())
	}
}

// TestDebian lets dpkg install the package in a folder, and remove it.
func TestDebian(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg")
	if err != nil || os.Getuid() != 0 {
		t.Skip("no dpkg, or not root: dpkg cannot install")
	}
	r := built(t)
	path := filepath.Join(t.TempDir(), "gallop.deb")
	out, err := exec.Command(dpkg, "--print-architecture").Output()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, r.debian(target{os: "linux", arch: strings.TrimSpace(string(out))}, someFiles()), 0o644))
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "var", "lib", "dpkg", "updates"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "var", "lib", "dpkg", "info"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "var", "lib", "dpkg", "status"), nil, 0o644))
	call := func(args ...string) {
		out, err := exec.Command(dpkg, append([]string{"--root=" + root, "--log=/dev/null", "--force-depends"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	call("-i", path)
	call("-V", "gallop")
	require.FileExists(t, filepath.Join(root, "usr", "bin", "gallop"))
	require.FileExists(t, filepath.Join(root, "usr", "share", "man", "man1", "gallop.1.gz"))
	require.FileExists(t, filepath.Join(root, "usr", "share", "zsh", "vendor-completions", "_gallop"))
	call("-P", "gallop")
	require.NoDirExists(t, filepath.Join(root, "usr"))
}

func TestManifests(t *testing.T) {
	r := built(t)
	require.NoError(t, r.writeManifests())
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(r.out, name))
		require.NoError(t, err)
		return data
	}
	mac, _ := r.archive("darwin-arm64")
	windows, _ := r.archive("windows-amd64")

	formula := string(read("gallop.rb"))
	require.Contains(t, formula, `url "https://github.com/gallop-llm/gallop/releases/download/v1.2.3/`+mac.name+"\"\n      sha256 \""+mac.sum)
	require.Contains(t, formula, `version "1.2.3"`)
	if ruby, err := exec.LookPath("ruby"); err == nil {
		out, err := exec.Command(ruby, "-c", filepath.Join(r.out, "gallop.rb")).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}

	var scoop struct {
		Version      string
		Bin          string
		Architecture map[string]struct{ URL, Hash, ExtractDir string }
	}
	require.NoError(t, json.Unmarshal(bytes.ReplaceAll(read("gallop.json"), []byte("extract_dir"), []byte("ExtractDir")), &scoop))
	require.Equal(t, "1.2.3", scoop.Version)
	require.Equal(t, windows.sum, scoop.Architecture["64bit"].Hash)
	require.Equal(t, "gallop-1.2.3-windows-amd64", scoop.Architecture["64bit"].ExtractDir)

	for _, name := range []string{"Gallop.Gallop.yaml", "Gallop.Gallop.installer.yaml", "Gallop.Gallop.locale.en-US.yaml"} {
		var manifest map[string]any
		require.NoError(t, yaml.Unmarshal(read(name), &manifest))
		require.Equal(t, "Gallop.Gallop", manifest["PackageIdentifier"])
		require.Equal(t, "1.2.3", manifest["PackageVersion"])
		if installers, ok := manifest["Installers"].([]any); ok {
			require.Equal(t, strings.ToUpper(windows.sum), installers[0].(map[string]any)["InstallerSha256"])
		}
	}

	// Without Windows there is nothing for its package managers.
	r = built(t)
	r.assets = slices.DeleteFunc(r.assets, func(a asset) bool { return a.target.os != "linux" })
	require.NoError(t, r.writeManifests())
	require.NoFileExists(t, filepath.Join(r.out, "gallop.json"))
	require.NotContains(t, string(read("gallop.rb")), "on_macos")
}

// TestJoin puts what two systems built into one release.
func TestJoin(t *testing.T) {
	parts := t.TempDir()
	for path, data := range map[string]string{
		"linux/gallop-1.2.3-linux-amd64.tar.gz": "a", "linux/gallop_1.2.3_amd64.deb": "b", "linux/gallop-1.2.3-linux-amd64.cdx.json": "c",
		"linux/SHA256SUMS": "old", "linux/gallop.rb": "old", "mac/gallop-1.2.3-darwin-arm64.tar.gz": "d", "mac/SHA256SUMS": "old",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(parts, filepath.Dir(path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(parts, path), []byte(data), 0o644))
	}
	r := &release{version: "v1.2.3", out: filepath.Join(t.TempDir(), "out")}
	require.NoError(t, r.join(parts))
	sums, err := os.ReadFile(filepath.Join(r.out, "SHA256SUMS"))
	require.NoError(t, err)
	var names []string
	for line := range strings.Lines(string(sums)) {
		names = append(names, strings.Fields(line)[1])
	}
	require.Equal(t, []string{"gallop-1.2.3-darwin-arm64.tar.gz", "gallop-1.2.3-linux-amd64.cdx.json", "gallop-1.2.3-linux-amd64.tar.gz", "gallop.rb", "gallop_1.2.3_amd64.deb"}, names)
	formula, err := os.ReadFile(filepath.Join(r.out, "gallop.rb"))
	require.NoError(t, err)
	require.Contains(t, string(formula), "on_macos")
	require.Contains(t, string(formula), "on_linux")
	require.Error(t, (&release{version: "v9", out: t.TempDir()}).join(parts))
}

// TestPartsList lists the parts of this test program.
func TestPartsList(t *testing.T) {
	r := built(t)
	program, err := os.Executable()
	require.NoError(t, err)
	for _, target := range targets {
		text, err := r.partsList(target, program)
		require.NoError(t, err)
		var bom struct {
			BOMFormat  string
			Components []component
		}
		require.NoError(t, json.Unmarshal(text, &bom))
		require.Equal(t, "CycloneDX", bom.BOMFormat)
		var fetched []string
		for _, c := range bom.Components {
			if name, ok := strings.CutPrefix(c.Name, "@node-llama-cpp/"); ok {
				fetched = append(fetched, name)
				require.Len(t, c.Hashes[0].Content, 128)
			}
		}
		require.ElementsMatch(t, map[string][]string{
			"linux-amd64": {"linux-x64", "linux-x64-cuda", "linux-x64-vulkan"}, "linux-arm64": {"linux-arm64"},
			"windows-amd64": {"win-x64"}, "darwin-amd64": {"mac-x64"}, "darwin-arm64": {"mac-arm64-metal"},
		}[target.name()], fetched)
		require.True(t, slices.ContainsFunc(bom.Components, func(c component) bool { return c.Name == "std" }))
	}
}
