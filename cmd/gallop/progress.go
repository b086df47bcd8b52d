package main

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// spin shows what is being done, and for how long, until stop is called. Away
// from a terminal it is silent.
func spin(w io.Writer, what string) (stop func()) {
	if !isTerminal(w) {
		return func() {}
	}
	bar := progressbar.NewOptions(-1, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what),
		progressbar.OptionSetElapsedTime(true), progressbar.OptionClearOnFinish(), progressbar.OptionSetRenderBlankState(true))
	return func() { _ = bar.Finish() }
}

// patience is how long a bar waits before it shows itself: quick work needs none.
const patience = 2 * time.Second

// byteBar gives a function that shows how many bytes are done and when the rest
// will be, and one that takes the bar away. Away from a terminal both are silent.
func byteBar(w io.Writer, what string) (progress func(done, total int64), stop func()) {
	if !isTerminal(w) {
		return func(int64, int64) {}, func() {}
	}
	late := &lateWriter{w: w, from: time.Now().Add(patience)}
	bar := progressbar.NewOptions64(0, progressbar.OptionSetWriter(late), progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	return func(done, total int64) {
		bar.ChangeMax64(total)
		_ = bar.Set64(done)
	}, func() { _ = bar.Exit(); _ = bar.Clear() }
}

// lateWriter drops what comes too early.
type lateWriter struct {
	w    io.Writer
	from time.Time
}

func (l *lateWriter) Write(p []byte) (int, error) {
	if time.Now().Before(l.from) {
		return len(p), nil
	}
	return l.w.Write(p)
}
