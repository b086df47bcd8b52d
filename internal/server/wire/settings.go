package wire

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop"
)

// Settings are Gallop's own: the field "gallop" of a request, a header for each, or words
// behind a model's name. nil = not said.
type Settings struct {
	Skip     *string  `json:"skip"`    // as [gallop.ParseSkip] reads it
	Depth    *float64 `json:"depth"`   // layers' worth of weights to leave out
	Quality  *float64 `json:"quality"` // share of the whole model's probability to keep
	Route    *string  `json:"route"`   // "auto" = as the profile recommends, "off" = the whole model
	Lossless *bool    `json:"lossless"`
	Detail   *bool    `json:"detail"` // each token, with its probability and what computed it
}

// ParseSettings reads the field "gallop".
func ParseSettings(raw json.RawMessage) (s Settings, err error) {
	if len(raw) == 0 {
		return s, nil
	}
	if err := Decode(raw, "gallop", &s, nil); err != nil {
		return s, err
	}
	_, _, err = s.Choice()
	return s, err
}

// header is in front of a setting's name in a header: X-Gallop-Skip.
const header = "X-Gallop-"

// HeaderSettings reads the headers.
func HeaderSettings(h http.Header) (s Settings, err error) {
	for _, name := range settingNames {
		if text := h.Get(header + name); text != "" {
			if err := s.set(strings.ToLower(name), text); err != nil {
				return s, BadRequest("", "header %s%s: %v", header, name, err)
			}
		}
	}
	_, _, err = s.Choice()
	return s, err
}

var settingNames = []string{"Skip", "Depth", "Quality", "Route", "Lossless", "Detail"}

// CutModel reads the words behind a model's name: "name@skip=4,6", "name@whole",
// "name@quality=0.95@lossless".
func CutModel(text string) (name string, s Settings, err error) {
	name, words, found := strings.Cut(text, "@")
	for word := range strings.SplitSeq(words, "@") {
		key, value, isPair := strings.Cut(word, "=")
		switch {
		case !found:
			continue
		case word == "whole":
			key, value = "route", "off"
		case word == "routed":
			key, value = "route", "auto"
		case word == "lossless":
			key, value = "lossless", "true"
		case !isPair:
			return "", s, BadRequest("model", "model %q: want name@whole, @routed, @lossless, @skip=, @depth= or @quality= and not @%s", text, word)
		}
		if err := s.set(key, value); err != nil {
			return "", s, BadRequest("model", "model %q: %v", text, err)
		}
	}
	_, _, err = s.Choice()
	return name, s, err
}

// set sets one setting by name.
func (s *Settings) set(name, text string) (err error) {
	switch name {
	case "skip":
		s.Skip = &text
	case "route":
		s.Route = &text
	case "depth":
		s.Depth, err = parse(text, "a number", func(t string) (float64, error) { return strconv.ParseFloat(t, 64) })
	case "quality":
		s.Quality, err = parse(text, "a number", func(t string) (float64, error) { return strconv.ParseFloat(t, 64) })
	case "lossless":
		s.Lossless, err = parse(text, "true or false", strconv.ParseBool)
	case "detail":
		s.Detail, err = parse(text, "true or false", strconv.ParseBool)
	default:
		err = fmt.Errorf("there is no setting %q", name)
	}
	return err
}

func parse[T any](text, want string, read func(string) (T, error)) (*T, error) {
	v, err := read(text)
	if err != nil {
		return nil, fmt.Errorf("%q: want %s", text, want)
	}
	return &v, nil
}

// Or is s, with other's where s does not say. What is left out is said by one of the two.
func (s Settings) Or(other Settings) Settings {
	if s.Skip == nil && s.Depth == nil && s.Quality == nil && s.Route == nil {
		s.Skip, s.Depth, s.Quality, s.Route = other.Skip, other.Depth, other.Quality, other.Route
	}
	if s.Lossless == nil {
		s.Lossless = other.Lossless
	}
	if s.Detail == nil {
		s.Detail = other.Detail
	}
	return s
}

// Choice is what the settings say of the layers to leave out, and whether losslessly.
func (s *Settings) Choice() (skip gallop.Skip, lossless bool, err error) {
	text, said := "", 0
	if s.Skip != nil {
		text, said = *s.Skip, said+1
	}
	if s.Depth != nil {
		text, said = "depth="+strconv.FormatFloat(*s.Depth, 'g', -1, 64), said+1
	}
	if s.Quality != nil {
		text, said = "quality="+strconv.FormatFloat(*s.Quality, 'g', -1, 64), said+1
	}
	if s.Route != nil {
		words := map[string]string{"auto": "routed", "off": "off"}
		if words[*s.Route] == "" {
			return skip, false, BadRequest("gallop.route", "gallop.route is %q, want auto or off", *s.Route)
		}
		text, said = words[*s.Route], said+1
	}
	if said > 1 {
		return skip, false, BadRequest("gallop", "gallop: skip, depth, quality and route exclude each other")
	}
	skip, err = gallop.ParseSkip(text)
	if err != nil {
		return skip, false, BadRequest("gallop", "gallop: %v", err)
	}
	return skip, s.Lossless != nil && *s.Lossless, nil
}

// WantsDetail tells whether each token is to be told of.
func (s *Settings) WantsDetail() bool { return s.Detail != nil && *s.Detail }
