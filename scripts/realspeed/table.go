package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// results is the file of rows.
type results struct {
	Command string `json:"command"`
	CPU     string `json:"cpu"`
	Models  []row  `json:"models"`
}

func read(path string) (results, error) {
	var all results
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		return all, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// table is the README's.
func (all results) table() string {
	var s strings.Builder
	s.WriteString("| model | stock llama.cpp, tokens/s | with the shortlist | whole answer of 100 tokens | same token as the whole matrix |\n")
	s.WriteString("|---|--:|--:|--:|--:|\n")
	for _, m := range all.Models {
		short, equal := "– (none)", "–"
		if m.Shortlist != nil {
			short = fmt.Sprintf("%.2f × as fast", m.ShortlistRatio)
			equal = fmt.Sprintf("%d of %d", m.Shortlist.Rows-m.Shortlist.Unequal, m.Shortlist.Rows)
		}
		fmt.Fprintf(&s, "| %s | %.0f | %s | %.2f of the time | %s |\n", m.Name, m.StockTPS, short, m.Answer, equal)
	}
	fmt.Fprintf(&s, "\nMeasured on %s by `%s`.\n", all.CPU, all.Command)
	return s.String()
}
