package machine

import (
	"math"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestMemory(t *testing.T) {
	require.Equal(t, map[string]uint64{"MemTotal": 24684096 * 1024, "MemFree": 1024, "MemAvailable": 20860984 * 1024, "SwapFree": 0}, memory(fstest.MapFS{
		"proc/meminfo": {Data: []byte("MemTotal:       24684096 kB\nMemFree:        1 kB\nMemAvailable:   20860984 kB\nodd\nSwapFree: 0 kB\nMemTotal: lots kB\n")},
	}))
	require.Empty(t, memory(fstest.MapFS{}))
	free, total := Memory()
	require.Positive(t, free)
	require.GreaterOrEqual(t, total, free)
	free, total = Swap()
	require.GreaterOrEqual(t, total, free)
}

func TestMemoryLimit(t *testing.T) {
	type want struct{ room, limit uint64 }
	for name, test := range map[string]struct {
		files map[string]string
		want  want
	}{
		"nothing said": {nil, want{math.MaxUint64, math.MaxUint64}},
		"no bound":     {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, want{math.MaxUint64, math.MaxUint64}},
		"a container": {map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n", "sys/fs/cgroup/memory.current": "73741824\n",
			"sys/fs/cgroup/memory.stat": "anon 5\nfile 900\ninactive_file 1000\nactive_file 7\n",
		}, want{1<<30 - 73740824, 1 << 30}},
		"a full one": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "1001\n"}, want{0, 1000}},
		"a service in a slice of less": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/gallop.service\n", "sys/fs/cgroup/system.slice/gallop.service/memory.max": "3000\n",
			"sys/fs/cgroup/system.slice/gallop.service/memory.current": "2900\n",
			"sys/fs/cgroup/system.slice/memory.max":                    "2000\n",
		}, want{100, 2000}},
		"version 1, in a container that sees its own group only": {map[string]string{
			"proc/self/cgroup":                           "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/docker/1\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "4000\n", "sys/fs/cgroup/cpu/memory.limit_in_bytes": "1\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes": "1500\n", "sys/fs/cgroup/memory/memory.stat": "inactive_file 9\ntotal_inactive_file 500\n",
		}, want{3000, 4000}},
		"nonsense": {map[string]string{"proc/self/cgroup": "0\n::\n4:memory:\n0::../..\n", "sys/fs/cgroup/memory.max": "-1\n"}, want{math.MaxUint64, math.MaxUint64}},
	} {
		root := fstest.MapFS{}
		for path, text := range test.files {
			root[path] = &fstest.MapFile{Data: []byte(text)}
		}
		room, limit := memoryLimit(root)
		require.Equal(t, test.want, want{room, limit}, name)
	}
}
