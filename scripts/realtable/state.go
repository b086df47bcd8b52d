package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/skip"
)

// way is how an example is answered.
type way struct {
	mask     skip.Mask
	prefill  skip.Prefill
	escalate float64 // the cascade's threshold; 0 = none
}

// String names a way in the state's file.
func (w way) String() string {
	if w.mask.IsEmpty() {
		return "whole"
	}
	text := w.prefill.String() + " " + w.mask.String()
	if w.escalate > 0 {
		text += fmt.Sprintf(" %g", w.escalate)
	}
	return text
}

// record is what an example came to.
type record struct {
	Right     bool    `json:"right"`               // the right choice wins
	LogP      float64 `json:"logp"`                // of the right answer
	Tokens    int     `json:"tokens"`              // of the right answer
	Likeliest int     `json:"likeliest"`           // of these, the likeliest at their place
	Escalated int     `json:"escalated,omitempty"` // of these but the first, decided by the whole model
}

// speed is what decoding under a way came to, beside stock in the same run.
type speed struct {
	Ratio    []float64 `json:"ratio"`             // speed over stock's, of each round
	Short    []float64 `json:"short"`             // the same with the shortlist; nil = the model has none
	Same     int       `json:"same"`              // tokens that the shortlist chose as the whole matrix does
	Of       int       `json:"of"`                // tokens that were compared
	Stock    []float64 `json:"stock"`             // tokens/s of stock, of each round
	Again    float64   `json:"again"`             // share of the tokens that the cascade decoded again
	Extended float64   `json:"extended,omitzero"` // share of the matrix's rows that were read for tokens outside the list
}

// state is what has been measured of a model so far.
type state struct {
	Key    string                               `json:"key"`
	Sets   map[string][]string                  `json:"sets"`   // masks that searches found
	Turns  map[string][]float64                 `json:"turns"`  // (nLayer,) how far each feed-forward half turns the residual stream, by example
	Halves [2]float64                           `json:"halves"` // milliseconds of a token that attention and feed-forward of all layers take
	Took   map[string]float64                   `json:"took"`   // seconds, by part
	Scores map[string]map[string]map[int]record `json:"scores"` // by way, benchmark and example

	speeds `json:"-"` // in a file of its own, so that they can be measured while another process scores
	path   string
}

// speeds are what has been measured of a model's speed.
type speeds struct {
	Key    string           `json:"key"`
	Speeds map[string]speed `json:"speeds"` // by way
	Took   float64          `json:"took"`   // seconds
}

// openState reads what folder has of a model. Another key's state is no use.
func openState(folder, name, key string) (*state, error) {
	s := &state{path: filepath.Join(folder, name+".json")}
	if err := errors.Join(readState(s.path, s), readState(s.speedPath(), &s.speeds)); err != nil {
		return nil, err
	}
	if s.Key != key {
		s = &state{
			Key: key, speeds: s.speeds, path: s.path, Sets: map[string][]string{}, Turns: map[string][]float64{}, Took: map[string]float64{},
			Scores: map[string]map[string]map[int]record{},
		}
	}
	if s.speeds.Key != key {
		s.speeds = speeds{Key: key, Speeds: map[string]speed{}}
	}
	return s, os.MkdirAll(folder, 0o755)
}

// readState reads a file into v, if it is there.
func readState(path string, v any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("%s: %w; remove it to measure anew", path, err)
	}
	return nil
}

// speedPath is the file of speeds.
func (s *state) speedPath() string { return strings.TrimSuffix(s.path, ".json") + "-speed.json" }

// keep writes the state without the speeds.
func (s *state) keep() error { return writeState(s.path, s) }

// keepSpeeds writes the speeds.
func (s *state) keepSpeeds() error { return writeState(s.speedPath(), s.speeds) }

func writeState(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return files.Write(path, data)
}

// scoresOf are the records of a way in a benchmark.
func (s *state) scoresOf(way, benchmark string) map[int]record {
	if s.Scores[way] == nil {
		s.Scores[way] = map[string]map[int]record{}
	}
	if s.Scores[way][benchmark] == nil {
		s.Scores[way][benchmark] = map[int]record{}
	}
	return s.Scores[way][benchmark]
}

// sets gives the masks that find finds, from the state where they are known.
func (s *state) sets(name string, find func() ([]skip.Mask, error)) (masks []skip.Mask, err error) {
	if known, ok := s.Sets[name]; ok {
		for _, text := range known {
			mask, err := skip.Parse(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.path, err)
			}
			masks = append(masks, mask)
		}
		return masks, nil
	}
	if masks, err = find(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	texts := make([]string, len(masks))
	for i, mask := range masks {
		texts[i] = mask.String()
	}
	s.Sets[name] = texts
	return masks, s.keep()
}
