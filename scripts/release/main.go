// Command release builds what a release has: an archive for each system, packages, manifests
// for package managers, a list of parts (SBOM) of each archive, and checksums. `make release`
// calls it in the repository's root.
//
// Two runs on the same commit, with the same Go and C compilers, give the same bytes,
// wherever the repository lies.
package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// release is what is built.
type release struct {
	version  string // as v0.2.0, or a commit where there is no tag
	commit   string
	date     time.Time // of the commit; all files have it
	registry string    // npm's own default
	out      string    // folder
	assets   []asset
	share    []file // manual pages and completions, below share/
}

// asset is a file of the release.
type asset struct {
	target target
	name   string
	sum    string // SHA-256
}

// number is the version as package managers want it.
func (r *release) number() string { return strings.TrimPrefix(r.version, "v") }

func main() {
	r := &release{}
	flag.StringVar(&r.out, "o", "build/release", "folder that is written anew")
	flag.StringVar(&r.version, "version", "", "version")
	flag.StringVar(&r.registry, "registry", "", "npm registry that the programs ask where npm's configuration names none")
	wanted := flag.String("targets", "", "systems, as linux-amd64,linux-arm64 (default all whose C compiler is here)")
	parts := flag.String("join", "", "folder of releases of other systems, whose archives get one set of manifests")
	flag.Parse()
	work := func() error { return r.make(*wanted) }
	if *parts != "" {
		work = func() error { return r.join(*parts) }
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func (r *release) make(wanted string) error {
	if r.version == "" || r.registry == "" {
		return errors.New("give -version and -registry; `make release` does, with npm's help")
	}
	names := strings.FieldsFunc(wanted, func(c rune) bool { return c == ',' || c == ' ' })
	for _, name := range names {
		if !slices.ContainsFunc(targets, func(t target) bool { return t.name() == name }) {
			return fmt.Errorf("there is no system %q", name)
		}
	}
	if err := r.readCommit(); err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "gallop-release-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if r.share, err = r.makeShare(temp); err != nil {
		return err
	}
	if err := r.empty(); err != nil {
		return err
	}
	for _, t := range targets {
		asked := slices.Contains(names, t.name())
		if len(names) > 0 && !asked {
			continue
		}
		if err := t.missing(); err != nil {
			if asked {
				return err
			}
			fmt.Printf("left out %s: %v\n", t.name(), err)
			continue
		}
		if err := r.makeTarget(t, filepath.Join(temp, t.name())); err != nil {
			return fmt.Errorf("%s: %w", t.name(), err)
		}
	}
	if len(r.assets) == 0 {
		return errors.New("nothing was built: no C compiler is here")
	}
	if err := r.writeManifests(); err != nil {
		return err
	}
	return r.writeSums()
}

// empty makes the release's folder anew.
func (r *release) empty() error {
	if err := os.RemoveAll(r.out); err != nil {
		return err
	}
	return os.MkdirAll(r.out, 0o755)
}

// join makes one release of what several systems built below dir.
func (r *release) join(dir string) error {
	if r.version == "" {
		return errors.New("give -version")
	}
	if err := r.readCommit(); err != nil {
		return err
	}
	if err := r.empty(); err != nil {
		return err
	}
	for _, t := range targets {
		for _, pattern := range []string{"gallop-" + r.number() + "-" + t.name() + ".*", "gallop_" + r.debianVersion() + "_" + t.arch + ".deb"} {
			found, err := filepath.Glob(filepath.Join(dir, "*", pattern))
			if err != nil {
				return err
			}
			for _, path := range found {
				if strings.HasSuffix(path, ".deb") && t.os != "linux" {
					continue
				}
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				if err := r.write(t, filepath.Base(path), data); err != nil {
					return err
				}
			}
		}
	}
	if len(r.assets) == 0 {
		return fmt.Errorf("there is no archive of %s below %s", r.version, dir)
	}
	if err := r.writeManifests(); err != nil {
		return err
	}
	return r.writeSums()
}

// readCommit finds the commit and its time, which SOURCE_DATE_EPOCH overrules.
func (r *release) readCommit() error {
	out, err := exec.Command("git", "log", "-1", "--format=%H %ct").Output()
	if err != nil {
		return fmt.Errorf("read the commit: %w", err)
	}
	commit, text, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if given := os.Getenv("SOURCE_DATE_EPOCH"); given != "" {
		text = given
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fmt.Errorf("read the commit's time: %w", err)
	}
	r.commit, r.date = commit, time.Unix(seconds, 0).UTC()
	return nil
}

// makeTarget builds for one system and writes its assets.
func (r *release) makeTarget(t target, temp string) error {
	start := time.Now()
	files, program, err := r.build(t, temp)
	if err != nil {
		return err
	}
	folder := "gallop-" + r.number() + "-" + t.name()
	archive, suffix := tarball(folder, files, r.date), ".tar.gz"
	if t.os == "windows" {
		archive, suffix = zipFile(folder, files, r.date), ".zip"
	}
	if err := r.write(t, folder+suffix, archive); err != nil {
		return err
	}
	parts, err := r.partsList(t, program)
	if err != nil {
		return err
	}
	if err := r.write(t, folder+".cdx.json", parts); err != nil {
		return err
	}
	if t.os == "linux" {
		if err := r.write(t, "gallop_"+r.debianVersion()+"_"+t.arch+".deb", r.debian(t, files)); err != nil {
			return err
		}
	}
	fmt.Printf("built %s in %.0f s\n", t.name(), time.Since(start).Seconds())
	return nil
}

// write adds an asset.
func (r *release) write(t target, name string, data []byte) error {
	if err := os.WriteFile(filepath.Join(r.out, name), data, 0o644); err != nil {
		return err
	}
	r.assets = append(r.assets, asset{t, name, fmt.Sprintf("%x", sha256.Sum256(data))})
	return nil
}

// archive finds the archive of a system.
func (r *release) archive(name string) (a asset, ok bool) {
	i := slices.IndexFunc(r.assets, func(a asset) bool {
		return a.target.name() == name && (strings.HasSuffix(a.name, ".tar.gz") || strings.HasSuffix(a.name, ".zip"))
	})
	if i < 0 {
		return asset{}, false
	}
	return r.assets[i], true
}

// writeSums writes SHA256SUMS, as sha256sum -c reads it.
func (r *release) writeSums() error {
	slices.SortFunc(r.assets, func(a, b asset) int { return strings.Compare(a.name, b.name) })
	var text strings.Builder
	for _, a := range r.assets {
		fmt.Fprintf(&text, "%s  %s\n", a.sum, a.name)
	}
	fmt.Printf("%s (%s, %s):\n%s", r.out, r.version, runtime.Version(), text.String())
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), []byte(text.String()), 0o644)
}
