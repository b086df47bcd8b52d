package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"

	"github.com/gallop-llm/gallop/internal/server/wire"
)

// writer writes answers to a client. One that does not read fails after a while, so that
// it does not keep its place in the engine.
type writer struct {
	http.ResponseWriter
	timeout time.Duration
	events  bool // a stream has begun
}

// Unwrap is for [http.ResponseController].
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) write(data []byte) error {
	rc := http.NewResponseController(w)
	// It holds for what net/http writes after this too. Not every writer can.
	_ = rc.SetWriteDeadline(time.Now().Add(w.timeout))
	if _, err := w.Write(data); err != nil {
		return err
	}
	if w.events {
		return rc.Flush()
	}
	return nil
}

// json writes a whole body.
func (w *writer) json(status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // only types of our own, which can be marshalled
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return w.write(append(data, '\n'))
}

// ok writes the body of a request that went well. A client that is gone needs none.
func (w *writer) ok(v any) error {
	_ = w.json(http.StatusOK, v)
	return nil
}

// begin begins a stream of server-sent events.
func (w *writer) begin() {
	if w.events {
		return
	}
	w.events = true
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // proxies would hold events back
	w.WriteHeader(http.StatusOK)
}

// send writes events.
func (w *writer) send(events []wire.Event) error {
	if len(events) == 0 {
		return nil
	}
	var b bytes.Buffer
	for _, e := range events {
		if e.Name != "" {
			b.WriteString("event: " + e.Name + "\n")
		}
		b.WriteString("data: ")
		b.Write(e.Data) // JSON has no line breaks
		b.WriteString("\n\n")
	}
	return w.write(b.Bytes())
}

// keepAlive writes a comment, which clients pass over.
func (w *writer) keepAlive() error { return w.write([]byte(": keep-alive\n\n")) }
