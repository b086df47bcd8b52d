package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/skip"
)

// place is where a tensor's bytes are. Most are computed with where the file is
// mapped: such pages can be dropped at any time, the system reads them again.
// What llama.cpp repacked for the CPU is a copy in memory of its own; it can be
// made again from the file.
type place struct {
	part   int     // which file of a split model has it, from 0
	offset uint64  // in the file
	file   uintptr // address in the file's mapping; 0 = it is not mapped
	used   uintptr // address of the bytes that are computed with; 0 = not in main memory
	size   uint64  // of these, in bytes: a repacked tensor can take more than in the file
	layer  int
	half   skip.Half // of the layer: a mask that skips it spares the tensor; 0 = none does
}

func (p place) repacked() bool { return p.used != 0 && p.used != p.file }

// mapping is a part of a file in the address space, shared with the system's
// file cache and never written.
type mapping struct {
	start, end uintptr
	offset     uint64 // of start, in the file
}

// at is where size bytes of the file from offset on lie; 0 = elsewhere.
func (m mapping) at(offset, size uint64) uintptr {
	if offset < m.offset || offset-m.offset+size > uint64(m.end-m.start) {
		return 0
	}
	return m.start + uintptr(offset-m.offset)
}

// placeWeights finds the weights in memory.
func (m *Model) placeWeights(locked bool) error {
	own := map[int][]mapping{} // by part, those in which a tensor is at its place: one, if the file is mapped at all
	all := fileMappings()
	for i, t := range m.Tensors {
		p := &m.places[i]
		name := C.CString(t.Name)
		var size C.size_t
		p.used = uintptr(C.gallop_weight(m.ptr, name, &size))
		p.size = uint64(size)
		C.free(unsafe.Pointer(name))
		for _, in := range all {
			known := own[p.part]
			if p.used != 0 && in.at(p.offset, t.Size) == p.used && (len(known) == 0 || known[len(known)-1] != in) {
				own[p.part] = append(known, in)
			}
		}
	}
	m.pageable = canDrop && !locked
	for i, t := range m.Tensors {
		p := &m.places[i]
		for _, in := range own[p.part] {
			if addr := in.at(p.offset, t.Size); addr != 0 {
				p.file = addr
			}
		}
	}
	if len(own) > 0 {
		if err := m.mapEnds(); err != nil {
			return err
		}
	}
	if !m.runsBlocksAgain() {
		for i, t := range m.Tensors {
			m.places[i].layer, m.places[i].half = halfOf(t.Name, m.places[i].repacked())
		}
	}
	return m.dropUnused()
}

// runsBlocksAgain tells whether there are more layers than blocks of weights, as in Nanbeige's
// and HRM's loops: a mask that skips one run of a block must leave the other its weights,
// and which layer runs which block no file says.
func (m *Model) runsBlocksAgain() bool {
	blocks := 0
	for _, t := range m.Tensors {
		if block, _, ok := gguf.SplitLayer(t.Name); ok {
			blocks = max(blocks, block+1)
		}
	}
	return 0 < blocks && blocks < m.NLayer
}

// mapEnds maps the files again that have tensors outside llama.cpp's mapping: it keeps
// of a file what lies between the first tensor that it computes with in place and the last, so
// that where matrices were copied, those at the file's ends are not mapped.
func (m *Model) mapEnds() error {
	for part, path := range m.paths {
		var start uintptr
		for i := range m.places {
			p := &m.places[i]
			if p.part != part || p.used == 0 || p.file != 0 {
				continue
			}
			if start == 0 {
				data, err := mapFile(path)
				if err != nil {
					return fmt.Errorf("map %s: %w", path, err)
				}
				m.ends = append(m.ends, data)
				start = uintptr(unsafe.Pointer(unsafe.SliceData(data)))
			}
			p.file = start + uintptr(p.offset)
		}
	}
	return nil
}

// mapFile maps a file as llama.cpp does. It takes addresses, and memory only where it is read.
func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the mapping stays
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return mapBytes(f, int(info.Size()))
}

// dropUnused gives back what nothing reads of the mapping. What llama.cpp copied
// at load, to repack it or to a GPU, it leaves there too, so that it would stand
// in memory twice; and whenever a page is read, the system maps others around it.
func (m *Model) dropUnused() error {
	for i, p := range m.places {
		if m.pageable && p.file != 0 && p.file != p.used {
			if err := m.drop(p.file, m.Tensors[i].Size); err != nil {
				return err
			}
		}
	}
	return nil
}

// skippedBy tells whether mask spares the tensor.
func (p place) skippedBy(mask skip.Mask) bool { return mask.Skipped(p.layer)&p.half != 0 }

// halfOf is the half of a layer whose masks let a tensor's memory be given
// back, by its name; 0 = there is none. A wrong guess costs time where pages of
// the file come back by themselves. A repacked copy does not, so it must be sure
// which half of its layer needs it, and that no other layer does, as RWKV-7's
// layers need the first one's time_mix_value.
func halfOf(tensor string, repacked bool) (layer int, half skip.Half) {
	layer, rest, ok := gguf.SplitLayer(tensor)
	switch {
	case !ok || layer >= skip.MaxLayers:
		return 0, 0
	case repacked && !strings.HasPrefix(rest, "attn_") && !strings.HasPrefix(rest, "ffn_"):
		return 0, 0
	case gguf.FeedForward(rest):
		return layer, skip.FeedForward
	}
	return layer, skip.Attention
}

// pages are the whole ones among size bytes from addr on.
func pages(addr uintptr, size uint64) (start uintptr, n uint64) {
	page := uintptr(os.Getpagesize())
	start, end := (addr+page-1)&^(page-1), (addr+uintptr(size))&^(page-1)
	return start, uint64(max(end, start) - start)
}

// drop gives whole pages of a tensor's bytes back to the system.
func (m *Model) drop(addr uintptr, size uint64) error {
	start, n := pages(addr, size)
	if err := dropPages(start, n); err != nil {
		return fmt.Errorf("give back %d bytes of %s: %w", n, m.Path, err)
	}
	return nil
}

// droppable tells whether some mask spares the tensor, and its bytes can be had again.
func (m *Model) droppable(p place) bool {
	return m.pageable && p.half != 0 && p.file != 0 && p.used != 0
}

// Releasable tells whether [Model.ReleaseWeights] can do anything: not where the
// file was read instead of mapped, or is locked in memory, or is all on a GPU, or where
// layers share weights, nor on Windows and macOS.
func (m *Model) Releasable() bool {
	for _, p := range m.places {
		if m.droppable(p) {
			return true
		}
	}
	return false
}

// ReleaseWeights gives the memory of the weights that mask skips back to the
// operating system, whole pages of each. [Context.Decode] brings back by itself
// what it needs: from the file, or from the system's file cache while that still
// has it. What was repacked for the CPU is repacked again before the decode. What
// is on a GPU stays there.
func (m *Model) ReleaseWeights(mask skip.Mask) error {
	mask = mask.Unread()
	if err := m.retain(); err != nil {
		return err
	}
	defer m.release()
	m.weights.Lock()
	defer m.weights.Unlock()
	for _, p := range m.places {
		if !m.droppable(p) || !p.skippedBy(mask) {
			continue
		}
		if p.repacked() {
			m.gone = m.gone.With(p.layer, p.half)
		}
		if err := m.drop(p.used, p.size); err != nil {
			return err
		}
	}
	return m.dropUnused()
}

// useWeights makes what mask keeps usable until m.weights.RUnlock.
func (m *Model) useWeights(mask skip.Mask) error {
	mask = mask.Unread()
	m.weights.RLock()
	for !m.gone.Minus(mask).IsEmpty() {
		m.weights.RUnlock()
		if err := m.repack(mask); err != nil {
			return err
		}
		m.weights.RLock()
	}
	return nil
}

// repack makes the repacked copies that are gone and that mask keeps again, as
// many at a time as there are processors: llama.cpp uses one for each.
func (m *Model) repack(mask skip.Mask) error {
	m.weights.Lock()
	defer m.weights.Unlock()
	wanted := make(chan int)
	var running sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for i := range wanted {
				name := C.CString(m.Tensors[i].Name)
				C.gallop_set_weight(m.ptr, name, C.uintptr_t(m.places[i].file), C.size_t(m.Tensors[i].Size))
				C.free(unsafe.Pointer(name))
			}
		})
	}
	for i, p := range m.places {
		if m.droppable(p) && p.repacked() && p.skippedBy(m.gone) && !p.skippedBy(mask) {
			wanted <- i
		}
	}
	close(wanted)
	running.Wait()
	m.gone = m.gone.Intersection(mask)
	return m.dropUnused()
}

// ResidentWeights is how many bytes of weights are in main memory now: what this
// process has of the file's mapping, by the system's count of pages, and what
// llama.cpp has copied, as it does to repack weights for the CPU. Weights on a GPU do
// not count. It fails where the system does not tell.
func (m *Model) ResidentWeights() (uint64, error) {
	if err := m.retain(); err != nil {
		return 0, err
	}
	defer m.release()
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("find out what is resident: %w", err)
	}
	resident := m.copied()
	own := false
	for line := range strings.Lines(string(maps)) {
		var start, end uintptr
		var kilobytes uint64
		if _, err := fmt.Sscanf(line, "%x-%x ", &start, &end); err == nil {
			own = m.maps(start, end)
		} else if _, err := fmt.Sscanf(line, "Rss: %d kB", &kilobytes); err == nil && own {
			resident += kilobytes << 10
		}
	}
	return resident, nil
}

// copied is the size of the weights in main memory outside the mapping, in bytes.
func (m *Model) copied() (bytes uint64) {
	m.weights.RLock()
	defer m.weights.RUnlock()
	for _, p := range m.places {
		if !p.repacked() {
			continue
		}
		bytes += p.size
		if m.droppable(p) && p.skippedBy(m.gone) {
			_, n := pages(p.used, p.size)
			bytes -= n
		}
	}
	return bytes
}

// maps tells whether a part of the address space holds weights as in the file.
func (m *Model) maps(start, end uintptr) bool {
	for _, p := range m.places {
		if p.file >= start && p.file < end {
			return true
		}
	}
	return false
}
