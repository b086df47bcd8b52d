package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// A server's log is written behind its back: neither a disk that is full nor a reader that has
// stopped may hold up an answer or end the server.
const (
	logLines = 1024            // wait at most; more are left out
	logEnd   = 2 * time.Second // that the last lines get
)

// serverLog writes lines to a file that may fail or stand still.
type serverLog struct {
	to    io.Writer
	lines chan []byte
	lost  atomic.Int64 // lines that were left out since the last one that was written
	stop  chan struct{}
	ended chan struct{}
}

// newServerLog begins to write to out. Of stderr it writes to a file descriptor of its own: a
// reader that is gone would end the program otherwise (os/signal, "SIGPIPE"), and what llama.cpp
// complains about is caught on stderr for a moment, which could hold back our lines.
func newServerLog(out io.Writer) *serverLog {
	if f, ok := out.(*os.File); ok && f == os.Stderr {
		out = ownFile(f)
	}
	l := &serverLog{to: out, lines: make(chan []byte, logLines), stop: make(chan struct{}), ended: make(chan struct{})}
	go l.write()
	return l
}

// Write takes lines and never waits for them to be written. It never fails.
func (l *serverLog) Write(lines []byte) (int, error) {
	select {
	case l.lines <- append([]byte(nil), lines...):
	default:
		l.lost.Add(1)
	}
	return len(lines), nil
}

func (l *serverLog) write() {
	defer close(l.ended)
	for {
		select {
		case lines := <-l.lines:
			l.put(lines)
		case <-l.stop:
			for {
				select {
				case lines := <-l.lines:
					l.put(lines)
				default:
					return
				}
			}
		}
	}
}

func (l *serverLog) put(lines []byte) {
	if _, err := l.to.Write(lines); err != nil {
		l.lost.Add(1)
	} else if n := l.lost.Swap(0); n > 0 {
		fmt.Fprintf(l.to, "gallop: %d lines of the log could not be written\n", n)
	}
}

// Close gives the last lines a moment. What is written later is lost.
func (l *serverLog) Close() {
	close(l.stop)
	select {
	case <-l.ended:
	case <-time.After(logEnd):
	}
}
