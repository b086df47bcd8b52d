package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// recalled is how many facts are found in texts, or remembered in chats.
type recalled struct {
	Model   string `json:"model"`
	Kind    string `json:"kind"`
	Asked   int    `json:"asked"`
	Whole   int    `json:"whole"`   // found by the whole model with llama.cpp's attention
	Default int    `json:"default"` // by Gallop as it is by default
	Lost    int    `json:"lost"`    // of whole, not found by default
	Local   int    `json:"local"`   // by default with local layers: the mask of the model's longest row
}

const (
	needleTexts   = 10
	needleDepths  = 6
	shortestText  = 2000 // tokens
	longestText   = 7600 // with question and answer it fits into the 8,192 tokens of small models
	recallContext = 8192
	chats         = 3
	chatFacts     = 10
	chatTurns     = 50
)

// recall asks for facts hidden in long texts and told in long chats, with stock's attention and by default.
func recall(out, document string, models []string) error {
	all, text, err := begin(out, document)
	if err != nil {
		return err
	}
	for _, name := range models {
		m, err := load(name)
		if err != nil {
			return err
		}
		var local *skip.Mask
		longest := 0
		for _, r := range all.Rows {
			if mask, err := skip.Parse(cmp.Or(r.Mask, "off")); err == nil && r.Model == name && r.Context > longest && !mask.IsEmpty() {
				local, longest = &mask, r.Context
			}
		}
		found, err := recallOf(m, text, local)
		if err := errors.Join(err, m.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for i := range found {
			found[i].Model = name
		}
		all.Recalled = append(slices.DeleteFunc(all.Recalled, func(old recalled) bool { return old.Model == name }), found...)
		if err := all.write(out); err != nil {
			return err
		}
	}
	return nil
}

// way is how a model is asked.
type way struct {
	*gallop.Engine
	skip gallop.Skip // zero = nothing
}

func recallOf(m *llama.Model, text string, local *skip.Mask) ([]recalled, error) {
	ways := []way{{}, {}}
	if local != nil {
		ways = append(ways, way{skip: gallop.Layers(*local)})
	}
	for i := range ways {
		o := gallop.Options{Parallel: 1, Profile: gallop.NoProfile, NoCosts: true, Context: llama.ContextOptions{NCtx: recallContext, Flash: llama.FlashGrouped}}
		if i == 0 {
			o.Shortlist, o.Context.Flash = -1, llama.FlashOn
		}
		e, err := gallop.New(m, &o)
		if err != nil {
			return nil, err
		}
		defer e.Close()
		ways[i].Engine = e
	}
	needles, talks := recalled{Kind: "needles"}, recalled{Kind: "chats"}
	for i := range needleTexts {
		facts, asked, err := hide(m, text, i)
		if err != nil {
			return nil, err
		}
		found := make([][]bool, len(ways))
		for k, w := range ways {
			for _, f := range facts {
				answer, err := w.say([]gallop.Message{{Role: "user", Content: asked + "\n\n" + f.question()}}, 24)
				if err != nil {
					return nil, err
				}
				found[k] = append(found[k], strings.Contains(answer, f.code))
			}
		}
		needles.count(found)
		fmt.Fprintf(os.Stderr, "text %d of %d: %d of %d needles found, %d by default, %d with local layers\n", i+1, needleTexts, needles.Whole, needles.Asked, needles.Default, needles.Local)
	}
	for i := range chats {
		found := make([][]bool, len(ways))
		for k, w := range ways {
			remembered, err := w.chat(i)
			if err != nil {
				return nil, err
			}
			found[k] = remembered
		}
		talks.count(found)
		fmt.Fprintf(os.Stderr, "chat %d of %d: %d of %d facts remembered, %d by default, %d with local layers\n", i+1, chats, talks.Whole, talks.Asked, talks.Default, talks.Local)
	}
	return []recalled{needles, talks}, nil
}

// count adds answers in all ways to the same questions.
func (r *recalled) count(found [][]bool) {
	for i, whole := range found[0] {
		r.Asked++
		if whole {
			r.Whole++
		}
		if found[1][i] {
			r.Default++
		}
		if whole && !found[1][i] {
			r.Lost++
		}
		if len(found) > 2 && found[2][i] {
			r.Local++
		}
	}
}

// fact is something that nobody can guess.
type fact struct{ thing, code string }

func (f fact) told() string { return fmt.Sprintf("The code of the %s is %s.", f.thing, f.code) }
func (f fact) question() string {
	return fmt.Sprintf("What is the code of the %s? Answer with the number.", f.thing)
}

var colours, things = []string{"red", "blue", "green", "yellow", "black", "white", "brown"}, []string{"door", "boat", "box", "lamp", "bicycle", "tower", "piano", "garden", "bridge"}

// facts gives n facts, other ones for each seed.
func facts(n, seed int) (all []fact) {
	random := rand.New(rand.NewPCG(uint64(seed), 17))
	for _, k := range random.Perm(len(colours) * len(things))[:n] {
		all = append(all, fact{colours[k%len(colours)] + " " + things[k/len(colours)], strconv.Itoa(100_000 + random.IntN(900_000))})
	}
	return all
}

// hide puts facts between paragraphs of the i-th text, at needleDepths depths from its beginning to its end.
func hide(m *llama.Model, text string, i int) (hidden []fact, with string, err error) {
	tokens, err := m.Vocab.Tokenize(text, false)
	if err != nil {
		return nil, "", err
	}
	length := shortestText + i*(longestText-shortestText)/(needleTexts-1)
	if len(tokens) < length {
		return nil, "", errors.New("the document is too short: name a longer one with -text")
	}
	from := i * (len(tokens) - length) / needleTexts
	paragraphs := strings.Split(strings.ToValidUTF8(m.Vocab.Text(tokens[from:from+length], false), ""), "\n")
	hidden = facts(needleDepths, i)
	var b strings.Builder
	for line, p := range paragraphs {
		for k, f := range hidden {
			if line == k*(len(paragraphs)-1)/(needleDepths-1) {
				b.WriteString(f.told() + "\n")
			}
		}
		b.WriteString(p + "\n")
	}
	return hidden, b.String(), nil
}

var subjects = []string{"rivers", "bees", "the moon", "bread", "steam engines", "whales", "chess", "glass", "volcanoes", "paper", "salt", "bridges", "owls", "clocks", "tea"}

// chat tells facts in its first turns, talks of other things, and asks back in its last turns.
func (w way) chat(seed int) (remembered []bool, err error) {
	told := facts(chatFacts, 100+seed)
	var messages []gallop.Message
	for turn := range chatTurns {
		most, question := 24, fmt.Sprintf("Tell me one short fact about %s.", subjects[(turn+7*seed)%len(subjects)])
		back := turn - (chatTurns - chatFacts)
		switch {
		case turn < chatFacts:
			most, question = 12, "Please remember this. "+told[turn].told()
		case back >= 0:
			question = told[back].question()
		}
		messages = append(messages, gallop.Message{Role: "user", Content: question})
		answer, err := w.say(messages, most)
		if err != nil {
			return nil, err
		}
		messages = append(messages, gallop.Message{Role: "assistant", Content: answer})
		if back >= 0 {
			remembered = append(remembered, strings.Contains(answer, told[back].code))
		}
	}
	return remembered, nil
}

// say is the likeliest answer.
func (w way) say(messages []gallop.Message, most int) (string, error) {
	a, err := w.Answer(context.Background(), gallop.Request{Messages: messages, MaxTokens: most, Sampling: &llama.Sampling{}, Skip: w.skip})
	if err != nil {
		return "", err
	}
	return a.Text, nil
}
