package gallop

import (
	"sync"
	"time"
)

// idleAfter is how long no request must have run before idle time is used.
const idleAfter = 200 * time.Millisecond

// idling uses the time in which no request runs for what makes later answers faster.
type idling struct {
	mu      sync.Mutex
	e       *Engine // nil = idle time is not used
	running int
	timer   *time.Timer
}

func (i *idling) init(e *Engine) {
	if !e.opts.Learn || e.learner == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.e = e
	i.timer = time.AfterFunc(idleAfter, i.begin)
}

// begin is called when no request has run for a while.
func (i *idling) begin() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.e != nil && i.running == 0 {
		i.e.learner.Idle()
	}
}

// busy says that a request begins: what was going on stops at once.
func (i *idling) busy() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.e == nil {
		return
	}
	i.running++
	i.timer.Stop()
	i.e.learner.Busy()
}

// free says that a request has ended.
func (i *idling) free() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.e == nil {
		return
	}
	if i.running--; i.running == 0 {
		i.timer.Reset(idleAfter)
	}
}

// stop ends the use of idle time.
func (i *idling) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.e == nil {
		return
	}
	i.timer.Stop()
	i.e.learner.Busy()
	i.e = nil
}
