// Command logits prints checksums of logits, so that two systems can be compared: those of
// the models that it is given, whole and under masks, for a prompt and for single tokens.
//
//	logits MODEL.gguf...
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "logits:", err)
		os.Exit(1)
	}
}

func run(models []string) error {
	if _, err := libs.Load(); err != nil {
		return err
	}
	if err := llama.MasksAvailable(); err != nil {
		return err
	}
	fmt.Println("llama.cpp", llama.Version())
	fmt.Println(llama.SystemInfo())
	for _, path := range models {
		if err := print(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// print decodes a prompt and some tokens under each of a few masks.
func print(path string) error {
	m, err := llama.LoadModel(context.Background(), path, &llama.ModelOptions{GPULayers: llama.CPUOnly})
	if err != nil {
		return err
	}
	defer m.Close()
	for threads := 1; threads <= 2; threads++ {
		c, err := m.NewContext(&llama.ContextOptions{NCtx: 256, Threads: threads})
		if err != nil {
			return err
		}
		defer c.Close()
		for _, text := range []string{"", "1", "f0,a2", "a1-2,f3"} {
			mask, err := skip.Parse(text)
			if err != nil {
				return err
			}
			sum, err := checksum(m, c, mask)
			if err != nil {
				return fmt.Errorf("mask %q: %w", text, err)
			}
			fmt.Printf("%s, threads %d, without %q: %s\n", filepath.Base(path), threads, text, sum)
		}
	}
	return nil
}

// checksum is of the logits of a prompt and of the tokens behind it.
func checksum(m *llama.Model, c *llama.Context, mask skip.Mask) (string, error) {
	const prompt, single = 40, 4
	b, err := llama.NewBatch(prompt, nil)
	if err != nil {
		return "", err
	}
	defer b.Close()
	c.Clear()
	h := sha256.New()
	for pos := 0; pos < prompt+single; {
		b.Clear()
		for n := 0; n == 0 || pos < prompt; n++ {
			if err := b.Add(llama.Token((7*pos*pos+pos)%m.Vocab.Size), pos, true, 0); err != nil {
				return "", err
			}
			pos++
		}
		if err := c.Decode(b, mask); err != nil {
			return "", err
		}
		for i := range b.Len() {
			logits, err := c.Logits(i)
			if err != nil {
				return "", err
			}
			for _, x := range logits {
				if err := binary.Write(h, binary.LittleEndian, math.Float32bits(x)); err != nil {
					return "", err
				}
			}
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
