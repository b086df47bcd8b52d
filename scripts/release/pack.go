package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/md5" // dpkg's
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// check ends the program: writing to memory fails for a mistake of this program only.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// folders are those that the files lie in, each after its parent.
func folders(files []file) (all []string) {
	for _, f := range files {
		for dir := path.Dir(f.name); dir != "." && dir != "/"; dir = path.Dir(dir) {
			all = append(all, dir)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// tarball packs files below folder. Owner, group and time say nothing of this machine.
func tarball(folder string, files []file, date time.Time) []byte {
	var b bytes.Buffer
	zipped := gzip.NewWriter(&b)
	t := tar.NewWriter(zipped)
	inside := make([]file, len(files))
	for i, f := range files {
		inside[i] = f
		inside[i].name = path.Join(folder, f.name)
		if folder == "." {
			inside[i].name = f.name
		}
	}
	header := func(h *tar.Header) {
		h.ModTime, h.Uname, h.Gname, h.Format = date, "root", "root", tar.FormatUSTAR
		if folder == "." { // as dpkg has names
			h.Name = "./" + h.Name
		}
		check(t.WriteHeader(h))
	}
	for _, dir := range folders(inside) {
		header(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
	}
	for _, f := range inside {
		header(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: int64(f.mode), Size: int64(len(f.data))})
		_, err := t.Write(f.data)
		check(err)
	}
	check(t.Close())
	check(zipped.Close())
	return b.Bytes()
}

func zipFile(folder string, files []file, date time.Time) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: path.Join(folder, f.name), Method: zip.Deflate, Modified: date}
		h.SetMode(f.mode)
		w, err := z.CreateHeader(h)
		check(err)
		_, err = w.Write(f.data)
		check(err)
	}
	check(z.Close())
	return b.Bytes()
}

func zipped(data []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(data)
	check(err)
	check(z.Close())
	return b.Bytes()
}

var isVersion = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~-]*$`)

// debianVersion begins with a digit, and sorts before every version where there is no tag.
func (r *release) debianVersion() string {
	number := strings.ReplaceAll(r.number(), "-", "~")
	if strings.Contains(number, ".") && isVersion.MatchString(number) {
		return number
	}
	return "0~" + r.date.Format("20060102") + "." + number
}

// debian makes a package of an archive's files: what lies below bin, lib and share goes
// below /usr.
func (r *release) debian(t target, files []file) []byte {
	var data []file
	size := 0
	for _, f := range files {
		switch {
		case f.name == "LICENSE":
			f.name = "usr/share/doc/gallop/copyright"
		case f.name == "CHANGELOG.md":
			f.name, f.data = "usr/share/doc/gallop/changelog.gz", zipped(f.data)
		case f.name == "README.md":
			f.name = "usr/share/doc/gallop/README.md"
		case strings.HasPrefix(f.name, "share/man/"):
			f.name, f.data = "usr/"+f.name+".gz", zipped(f.data)
		case strings.HasPrefix(f.name, "share/zsh/"):
			f.name = "usr/share/zsh/vendor-completions/_gallop"
		default:
			f.name = "usr/" + f.name
		}
		size += len(f.data)
		data = append(data, f)
	}
	slices.SortFunc(data, func(a, b file) int { return strings.Compare(a.name, b.name) })
	var sums strings.Builder
	for _, f := range data {
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.data), f.name)
	}
	control := fmt.Sprintf(`Package: gallop
Version: %s
Architecture: %s
Maintainer: The Gallop project <gallop@users.noreply.github.com>
Installed-Size: %d
Depends: libc6 (>= 2.34), libgcc-s1, libstdc++6 (>= 11)
Section: utils
Priority: optional
Homepage: %s
Description: local GGUF chat that runs only the layers a prompt needs
 Gallop runs language models of GGUF files through llama.cpp's own libraries,
 which "gallop setup" fetches, and can leave out transformer layers for any decode.
`, r.debianVersion(), t.arch, size/1024+1, homepage)
	member := func(b *bytes.Buffer, name string, data []byte) {
		fmt.Fprintf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, r.date.Unix(), 0, 0, "100644", len(data))
		b.Write(data)
		if len(data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	b := bytes.NewBufferString("!<arch>\n")
	member(b, "debian-binary", []byte("2.0\n"))
	member(b, "control.tar.gz", tarball(".", []file{{"control", 0o644, []byte(control)}, {"md5sums", 0o644, []byte(sums.String())}}, r.date))
	member(b, "data.tar.gz", tarball(".", data, r.date))
	return b.Bytes()
}
