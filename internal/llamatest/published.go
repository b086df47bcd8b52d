package llamatest

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/npm"
	llamacpp "github.com/gallop-llm/gallop/third_party/llama.cpp"
)

// Published is the folder of llama.cpp's libraries for another system, as the lock file
// of a device pins them: "win-x64" of "cpu", say. npm fetches them into folder, once.
func Published(t testing.TB, folder, device, platform string) string {
	t.Helper()
	text, err := llamacpp.Locks.ReadFile("npm/" + device + "/package-lock.json")
	require.NoError(t, err)
	var lock struct {
		Packages map[string]struct{ Version, Integrity string }
	}
	require.NoError(t, json.Unmarshal(text, &lock))
	pinned := lock.Packages["node_modules/@node-llama-cpp/"+platform]
	return PublishedAs(t, folder, platform, pinned.Version, pinned.Integrity)
}

// PublishedAs is [Published] for a version that no lock file pins.
func PublishedAs(t testing.TB, folder, platform, version, integrity string) string {
	t.Helper()
	dir := filepath.Join(folder, platform+"-"+version)
	libraries := filepath.Join(dir, "bins", platform)
	if _, err := os.Stat(libraries); err == nil {
		return libraries
	}
	temp := t.TempDir()
	cmd := exec.Command("npm", "pack", "--silent", "@node-llama-cpp/"+platform+"@"+version)
	cmd.Dir = temp
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "npm pack: %s", out)
	data, err := os.ReadFile(filepath.Join(temp, strings.TrimSpace(string(out))))
	require.NoError(t, err)
	sum := sha512.Sum512(data)
	require.Equal(t, integrity, "sha512-"+base64.StdEncoding.EncodeToString(sum[:]), "%s %s", platform, version)
	require.NoError(t, os.RemoveAll(dir+".part"))
	require.NoError(t, os.MkdirAll(dir+".part", 0o755))
	require.NoError(t, npm.Unpack(bytes.NewReader(data), dir+".part"))
	require.NoError(t, os.Rename(dir+".part", dir))
	return libraries
}
