package router

import "sync"

// scratch lends rooms of numbers, so that many goroutines can choose at once without
// allocating for each prompt.
var scratch = sync.Pool{New: func() any { return new([]float32) }}

// borrow is a room of n numbers, whatever they are; it goes back by scratch.Put.
func borrow(n int) *[]float32 {
	room := scratch.Get().(*[]float32)
	if cap(*room) < n {
		*room = make([]float32, n)
	}
	*room = (*room)[:n]
	return room
}
