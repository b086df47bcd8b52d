package llama

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOutputDevice(t *testing.T) {
	cpu, gpu, inside := Device{Name: "CPU", Kind: CPU}, Device{Name: "Vulkan0", Kind: GPU}, Device{Name: "Vulkan1", Kind: IGPU}
	blas := Device{Name: "BLAS", Kind: Accelerator}
	for _, c := range []struct {
		layers  int
		devices []Device
		want    string
	}{
		{0, []Device{cpu, blas}, ""},
		{0, []Device{cpu, gpu, inside}, "Vulkan0"},
		{1, []Device{cpu, inside}, "Vulkan1"},
		{CPUOnly, []Device{cpu, gpu}, ""},
	} {
		require.Equal(t, c.want, outputDevice(c.layers, c.devices))
	}
}
