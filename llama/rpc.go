package llama

// #include <stdlib.h>
// #include "glue.h"
import "C"

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unsafe"
)

// The protocol of the RPC module of [Release]. Servers of another one end the process, so they
// are asked first.
const (
	rpcMajor, rpcMinor = 7, 0
	rpcHello           = 14 // the command whose answer is the version
	rpcCaps            = 24 // bytes of what a transport can do; zeros = TCP alone
	rpcWait            = 5 * time.Second
)

// rpc are the servers whose devices the process has.
var rpc struct {
	sync.Mutex
	known map[string]bool
}

// addServers adds the devices of RPC servers to those of the process.
func addServers(ctx context.Context, endpoints []string) error {
	rpc.Lock()
	defer rpc.Unlock()
	if !C.gallop_has_rpc() {
		modules, _ := filepath.Glob(filepath.Join(Dir(), "*ggml-rpc*"))
		if len(modules) == 0 {
			return fmt.Errorf("%w: llama.cpp's RPC module (libggml-rpc.so) is not beside its libraries in %s: the published packages have none, so build it from llama.cpp %s and put it there", ErrRPC, Dir(), Release)
		}
		if err := LoadBackend(modules[0]); err != nil {
			return fmt.Errorf("%w: %w", ErrRPC, err)
		}
		if !C.gallop_has_rpc() {
			return fmt.Errorf("%w: %s is no RPC module", ErrRPC, modules[0])
		}
	}
	endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e string) bool { return rpc.known[e] }) // a server has one client at a time
	for _, endpoint := range endpoints {                                                                // all, before any is a device for good
		if err := greet(ctx, endpoint); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrRPC, endpoint, err)
		}
	}
	for _, endpoint := range endpoints {
		c := C.CString(endpoint)
		defer C.free(unsafe.Pointer(c))
		var why C.struct_gallop_text
		if !C.gallop_add_rpc(c, &why) {
			return cause(fmt.Errorf("%w: %s offers no devices", ErrRPC, endpoint), &why)
		}
		if rpc.known == nil {
			rpc.known = map[string]bool{}
		}
		rpc.known[endpoint] = true
	}
	return nil
}

// greet finds out whether a server of the module's protocol answers at an address.
func greet(ctx context.Context, endpoint string) error {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("not an address: write host:port")
	}
	ctx, cancel := context.WithTimeout(ctx, rpcWait)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return fmt.Errorf("no server answers: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	hello := append([]byte{rpcHello}, binary.LittleEndian.AppendUint64(nil, rpcCaps)...)
	if _, err := conn.Write(append(hello, make([]byte, rpcCaps)...)); err != nil {
		return fmt.Errorf("it takes no request: %w", err)
	}
	var answer [8 + 4 + rpcCaps]byte // the size, the version, what the transport can do
	_, err = io.ReadFull(conn, answer[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the server does not answer within %s: it may have another client, and takes one at a time", rpcWait)
	}
	if err != nil || binary.LittleEndian.Uint64(answer[:]) != uint64(len(answer)-8) {
		return fmt.Errorf("what answers is no RPC server of llama.cpp %s", Release)
	}
	if major, minor := answer[8], answer[9]; major != rpcMajor || minor > rpcMinor {
		return fmt.Errorf("its protocol is %d.%d, want %d.%d: run the RPC server of llama.cpp %s", major, minor, rpcMajor, rpcMinor, Release)
	}
	return nil
}
