package libs

import (
	"cmp"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/download"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/npm"
	"github.com/gallop-llm/gallop/llama"
)

// registry is the npm registry that is asked where npm's configuration names no other. The
// linker puts it there (-X), as npm itself has it.
var registry string

// scope is whose packages llama.cpp's libraries come in.
const scope = "@node-llama-cpp"

// pause and stall are a [download.Client]'s.
var (
	pause = time.Second
	stall = 30 * time.Second
)

// archive is a package as the lock file pins it.
type archive struct {
	name    string // without its scope
	version string
	sum     []byte // SHA-512
}

func (a archive) String() string { return scope + "/" + a.name + " " + a.version }

// archives are the packages of a device for this system. The error is [ErrPlatform].
func archives(device string) ([]archive, error) {
	text, err := locks.ReadFile("npm/" + device + "/package-lock.json")
	if err != nil {
		return nil, err
	}
	var lock struct {
		Packages map[string]struct{ Version, Integrity string }
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		return nil, fmt.Errorf("read the lock file of %s: %w", device, err)
	}
	var all []archive
	for path, pinned := range lock.Packages {
		name, ok := strings.CutPrefix(path, "node_modules/"+scope+"/")
		if !ok || name != platform() && !strings.HasPrefix(name, platform()+"-") {
			continue
		}
		base64Sum, _ := strings.CutPrefix(pinned.Integrity, "sha512-")
		sum, err := base64.StdEncoding.DecodeString(base64Sum)
		if err != nil || len(sum) != sha512.Size {
			return nil, fmt.Errorf("the lock file of %s has no SHA-512 of %s", device, name)
		}
		all = append(all, archive{name, pinned.Version, sum})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w for %s on %s/%s; build llama.cpp's shared libraries and set %s to their folder",
			ErrPlatform, device, runtime.GOOS, runtime.GOARCH, llama.EnvLibrary)
	}
	slices.SortFunc(all, func(a, b archive) int { return cmp.Compare(a.name, b.name) })
	return all, nil
}

// fetch puts a device's libraries in place and returns their folder.
func fetch(ctx context.Context, device string, o *Options) (string, error) {
	all, err := archives(device)
	if err != nil {
		return "", err
	}
	final, err := folder(device)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	aside := filepath.Join(filepath.Dir(final), "."+filepath.Base(final))
	lock, err := wait(ctx, aside+".lock")
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if dir, err := Verify(device); dir != "" { // another process has just brought them
		return dir, err
	}
	temp := aside + ".new"
	for _, left := range []string{temp, aside + ".old"} { // by a process that was ended
		if err := os.RemoveAll(left); err != nil {
			return "", fmt.Errorf("clear the cache folder: %w", err)
		}
	}
	defer os.RemoveAll(temp)
	for _, a := range all {
		path, own, err := a.bring(ctx, device, aside, o)
		if err != nil {
			return "", err
		}
		if own {
			defer os.Remove(path)
		}
		if err := unpack(a, path, filepath.Join(temp, "node_modules", scope, a.name)); err != nil {
			return "", err
		}
	}
	if err := writeList(temp); err != nil {
		return "", fmt.Errorf("note what was fetched: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return place(device, temp, final, aside+".old")
}

// place gives the folder temp its final name. Programs that use damaged libraries keep them.
func place(device, temp, final, old string) (string, error) {
	if err := os.Rename(final, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("take the damaged libraries away: %w", err)
	}
	defer os.RemoveAll(old)
	err := os.Rename(temp, final)
	dir, damaged := Verify(device)
	if dir == "" {
		return "", fmt.Errorf("put the libraries in place: %w", errors.Join(err, damaged))
	}
	return dir, nil
}

// lockPause is how often a lock is tried.
const lockPause = 100 * time.Millisecond

// wait opens a file and locks it, when no other process has it locked.
func wait(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache folder: %w", err)
	}
	for {
		err := files.TryLock(f)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, files.ErrLocked) {
			f.Close()
			return nil, fmt.Errorf("lock the cache folder: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// bring returns the path of a package's archive, whose checksum is right. own is whether it
// was fetched and may be deleted.
func (a archive) bring(ctx context.Context, device, aside string, o *Options) (path string, own bool, err error) {
	if o.From != "" {
		path, err := a.find(o.From)
		return path, false, err
	}
	at, err := npm.Configure(ctx, scope, registry)
	if err != nil {
		return "", false, err
	}
	file := download.File{Address: at.Archive(scope+"/"+a.name, a.version), Size: -1, NewSum: sha512.New, Want: a.sum}
	if o.Progress != nil {
		file.Progress = func(have, total int64) { o.Progress(device, have, total) }
	}
	path = aside + "-" + a.name + "-" + a.version + ".tgz"
	client := &download.Client{Transport: at.Transport, Pause: pause, Stall: stall}
	return path, true, a.explain(at.Address.Host, client.File(ctx, file, path))
}

// find looks for a package's archive by its checksum: from is the archive, or a folder that
// has it. The error is [ErrFrom].
func (a archive) find(from string) (string, error) {
	candidates := []string{from}
	if info, err := os.Stat(from); err != nil {
		return "", fmt.Errorf("%w: %w", ErrFrom, err)
	} else if info.IsDir() {
		candidates, _ = filepath.Glob(filepath.Join(from, "*.tgz"))
	}
	for _, path := range candidates {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrFrom, err)
		}
		sum := sha512.New()
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrFrom, err)
		}
		if slices.Equal(sum.Sum(nil), a.sum) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: %s has no archive of %s with the right checksum; `npm pack %s/%s@%s` fetches it where there is a network",
		ErrFrom, from, a, scope, a.name, a.version)
}

// unpack takes an archive apart into dir.
func unpack(a archive, path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", a, err)
	}
	defer f.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("unpack %s: %w", a, err)
	}
	if err := files.CheckRoom(dir, unzippedSize(f)); err != nil {
		return fmt.Errorf("unpack %s: %w", a, err)
	}
	if err := npm.Unpack(f, dir); err != nil {
		return fmt.Errorf("unpack %s: %w", a, err)
	}
	return nil
}

// unzippedSize is what the end of a gzip file says of its content, 0 when it cannot be
// read. Its 32 bits do for libraries.
func unzippedSize(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	var tail [4]byte
	if _, err := f.ReadAt(tail[:], info.Size()-int64(len(tail))); err != nil {
		return 0
	}
	return uint64(binary.LittleEndian.Uint32(tail[:]))
}

// explain turns a fault of fetching into the sentence for the user.
func (a archive) explain(host string, err error) error {
	var status *download.StatusError
	var local *os.PathError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, download.ErrChecksum):
		return fmt.Errorf("%w: what %s sent is not %s (SHA-512 %s…); it was deleted: run the same command again, or name another registry in npm's configuration",
			ErrFetch, host, a, hex.EncodeToString(a.sum[:4]))
	case errors.As(err, &local):
		return fmt.Errorf("write what comes of %s: %w", a, err)
	case !errors.As(err, &status):
		return fmt.Errorf("%w: fetching %s from %s failed (%w); the same command goes on from where it was, and without a network `gallop setup --from` takes an archive",
			ErrFetch, a, host, err)
	}
	switch code := status.Code; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusProxyAuthRequired:
		return fmt.Errorf("%w: %s gives no access to %s (%w); check the token for it in npm's configuration", ErrFetch, host, a, status)
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %s has no %s; check the registry in npm's configuration", ErrFetch, host, a)
	case code == http.StatusTooManyRequests, code >= 500:
		return fmt.Errorf("%w: %s has a fault of its own (%w); run the same command again later", ErrFetch, host, status)
	}
	return fmt.Errorf("%w: %s answers with %w for %s", ErrFetch, host, status, a)
}
