// Package thirdparty lets Go know of the C files below it. They are compiled
// into package llama by #include, which Go does not see: without this a change
// in them would leave the old object in Go's build cache in use.
package thirdparty

import _ "embed" // for the sources

var (
	//go:embed layerskip/layerskip.c
	_ string
	//go:embed layerskip/layerskip.h
	_ string
	//go:embed layerskip/hook_dlopen.c
	_ string
	//go:embed layerskip/hook_linux.c
	_ string
	//go:embed layerskip/hook_darwin.c
	_ string
	//go:embed layerskip/macho.c
	_ string
	//go:embed layerskip/hook_windows.c
	_ string
	//go:embed layerskip/stream.c
	_ string
	//go:embed layerskip/gates.c
	_ string
	//go:embed layerskip/tiles.c
	_ string
	//go:embed layerskip/local.c
	_ string
	//go:embed layerskip/neurons.c
	_ string
	//go:embed layerskip/rows.c
	_ string
	//go:embed layerskip/attend.c
	_ string
	//go:embed layerskip/barrier.c
	_ string
	//go:embed layerskip/memory.c
	_ string
	//go:embed llama.cpp/include/llama_api.h
	_ string
)
