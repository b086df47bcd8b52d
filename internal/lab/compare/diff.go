package compare

import (
	"strings"

	"github.com/aymanbagabas/go-udiff/lcs"
	"github.com/rivo/uniseg"
)

// Part is a piece of an answer.
type Part struct {
	Text    string
	Differs bool // from what it is compared with
}

// words cuts text at Unicode's word boundaries; spaces and punctuation are words too.
func words(text string) (all []string) {
	state := -1
	for text != "" {
		var word string
		word, text, state = uniseg.FirstWordInString(text, state)
		all = append(all, word)
	}
	return all
}

// differences marks the words in which others differ from stock, and in stock
// those that any of the others lacks: one list of parts for each text, stock's first.
func differences(stock string, others []string) [][]Part {
	a := words(stock)
	missed := make([]bool, len(a))
	all := make([][]Part, 1, len(others)+1)
	for _, other := range others {
		b := words(other)
		new := make([]bool, len(b))
		for _, d := range lcs.DiffLines(a, b) {
			for i := d.Start; i < d.End; i++ {
				missed[i] = true
			}
			for i := d.ReplStart; i < d.ReplEnd; i++ {
				new[i] = true
			}
		}
		all = append(all, parts(b, new))
	}
	all[0] = parts(a, missed)
	return all
}

// parts joins neighbours. Spaces between words that differ count as differing.
func parts(words []string, differs []bool) (all []Part) {
	for i, word := range words {
		d := differs[i]
		if strings.TrimSpace(word) == "" && i > 0 && i+1 < len(words) {
			d = d || differs[i-1] && differs[i+1]
		}
		if n := len(all); n > 0 && all[n-1].Differs == d {
			all[n-1].Text += word
		} else {
			all = append(all, Part{word, d})
		}
	}
	return all
}
