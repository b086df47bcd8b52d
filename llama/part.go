package llama

// part is C memory that belongs to a model and that contexts use: it is freed once
// it is closed and no context uses it any more.
type part struct {
	model  *Model
	closed bool

	free  func() // called once; guarded by model.mu, as is users
	users int    // contexts that use it, plus one until Close
}

// newPart takes over a use of m, which the caller has retained.
func newPart(m *Model, free func()) part {
	live.Add(1)
	return part{model: m, free: free, users: 1}
}

// Close frees the memory once no context uses it any more. Further calls do nothing.
func (p *part) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	p.release()
	return nil
}

func (p *part) retain() {
	p.model.mu.Lock()
	defer p.model.mu.Unlock()
	p.users++
}

func (p *part) release() {
	p.model.mu.Lock()
	p.users--
	last := p.users == 0
	if last {
		p.free()
	}
	p.model.mu.Unlock()
	if last {
		live.Add(-1)
		p.model.release()
	}
}
