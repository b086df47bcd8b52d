package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// learning is the calibration in the background of a chat; nil = there is none.
type learning struct {
	g      *generation
	engine *gallop.Engine
	back   *calibrate.Background
}

// startLearning prepares what --learn asks for; nil where there is nothing left to learn.
func (g *generation) startLearning(cmd *cobra.Command, e *gallop.Engine) (*learning, error) {
	if g.lossless || g.mask != "" || g.profile != "" || g.releaseSkipped || g.route == routeOff {
		return nil, usageError{errors.New("--learn makes a profile to route by: leave out --lossless, --skip, --profile, --release-skipped and --route off")}
	}
	notes, m := cmd.ErrOrStderr(), e.Model()
	if path, ok := router.Find(m.Path); ok && finished(path, m) {
		fmt.Fprintf(notes, "[nothing to learn: %s is this model's profile; `gallop calibrate` makes another]\n", path)
		return nil, nil
	}
	o := calibrate.Options{
		Examples: dataset.Starter(), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Threads: max(g.threads, 0), Seed: 1,
	}
	o.Quick()
	fingerprint, err := router.FingerprintOf(m.Path)
	if err != nil {
		return nil, err
	}
	if err := setFolder(&o, fingerprint); err != nil {
		return nil, err
	}
	if o.Examples, err = leaveOut(io.Discard, o.Examples, true, fits(m)); err != nil {
		return nil, err
	}
	path, err := profilePath(m.Path, fingerprint)
	if err != nil {
		return nil, err
	}
	ready := func() bool {
		known := e.Shortlist()
		return known.Why != "" || known.List != nil
	}
	fmt.Fprintf(notes, "[calibrates while you read or type, in about five minutes of that; takes up to %s of memory beside the model]\n", humanize.IBytes(calibrate.Memory(m)))
	return &learning{g, e, calibrate.NewBackground(m, o, ready, path)}, nil
}

// finished tells whether a file is a profile of the model that will not get better by itself.
func finished(path string, m *llama.Model) bool {
	p, err := router.Read(path)
	if err != nil {
		return false
	}
	fingerprint, err := router.FingerprintOf(m.Path)
	return err == nil && p.Check(fingerprint) == nil && !calibrate.Unfinished(p)
}

func (l *learning) idle() {
	if l != nil {
		l.back.Idle()
	}
}

// busy holds the calibration up and lets the engine use what it has found.
func (l *learning) busy(notes io.Writer) {
	if l == nil {
		return
	}
	l.back.Busy()
	found, err := l.back.Take()
	if err == nil && found != nil {
		err = l.use(found, notes)
	}
	if err != nil {
		fmt.Fprintln(notes, "gallop:", err)
	}
}

// use lets the engine route by a profile, if that pays.
func (l *learning) use(found *calibrate.Found, notes io.Writer) error {
	p, err := router.Read(found.Path)
	if err != nil {
		return err
	}
	state := "learnt so far"
	if found.Done {
		state = "learnt"
	}
	fmt.Fprintf(notes, "[%s: %s]\n", state, found.Has)
	if p.Defaults.Off && l.g.depth == 0 && l.g.quality == 0 {
		return nil
	}
	return l.engine.SetProfile(found.Path)
}

func (l *learning) close() {
	if l != nil {
		l.back.Close()
	}
}
