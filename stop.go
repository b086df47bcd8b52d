package gallop

import "strings"

// stopper cuts an answer off in front of a stop text. What may become one is
// held back until it is known not to.
type stopper struct {
	stops []string
	held  string
	found string // the stop text that has come
}

// next takes a piece of the answer and gives what can be said now; found tells
// that a stop text has come, and that this is the last.
func (s *stopper) next(piece string) (say string, found bool) {
	s.held += piece
	first, longest := len(s.held), 0
	for _, stop := range s.stops {
		if at := strings.Index(s.held, stop); at >= 0 && at < first {
			first, found, s.found = at, true, stop
		}
		for n := min(len(stop)-1, len(s.held)); n > longest; n-- {
			if strings.HasSuffix(s.held, stop[:n]) {
				longest = n
				break
			}
		}
	}
	if found {
		say, s.held = s.held[:first], ""
		return say, true
	}
	cut := len(s.held) - longest
	say, s.held = s.held[:cut], s.held[cut:]
	return say, false
}

// flush gives what was held back to the end.
func (s *stopper) flush() string {
	held := s.held
	s.held = ""
	return held
}
