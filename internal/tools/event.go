package tools

import (
	"crypto/rand"
	"strings"
)

// Kind is what an event tells of.
type Kind int

// The kinds of events.
const (
	Content   Kind = iota // Text of the answer
	Reasoning             // Text of the model's thoughts
	Begin                 // a call begins: Call, ID, Name
	Arguments             // Text goes on the JSON of a call's arguments
	End                   // a call is complete
	Broken                // a call is none: Text, with which it began, belongs to the content
)

// Event is a piece of an answer.
type Event struct {
	Kind Kind
	Text string
	Call int    // number of the call in the answer, from 0
	ID   string // of a call that begins
	Name string // of its function
}

// Call is a function's call.
type Call struct {
	ID, Name  string
	Arguments string // JSON object; the start of one where the answer was cut off
}

// Message is an answer taken apart.
type Message struct {
	Content   string
	Reasoning string
	Calls     []Call
}

// Add takes up events, in their order.
func (m *Message) Add(events ...Event) {
	for _, e := range events {
		switch e.Kind {
		case Content:
			m.Content += e.Text
		case Reasoning:
			m.Reasoning += e.Text
		case Begin:
			m.Calls = append(m.Calls, Call{ID: e.ID, Name: e.Name})
		case Arguments:
			m.Calls[len(m.Calls)-1].Arguments += e.Text
		case Broken:
			m.Calls = m.Calls[:len(m.Calls)-1]
			m.Content += e.Text
		}
	}
}

// newID makes a call's id: nine letters and digits where the template wants them so,
// behind "call_" elsewhere.
func newID(short bool) string {
	const letters, length = "abcdefghijklmnopqrstuvwxyz0123456789", 9
	var b strings.Builder
	if !short {
		b.WriteString("call_")
	}
	var random [length]byte
	rand.Read(random[:])
	for _, r := range random {
		b.WriteByte(letters[int(r)%len(letters)])
	}
	return b.String()
}
