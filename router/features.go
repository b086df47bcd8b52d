package router

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/llama"
)

// Prompt is what a router sees of a prompt: its text, and its tokens for the
// features that come from the model.
type Prompt struct {
	Text   string
	Tokens []llama.Token // may be nil where the features are n-grams alone
}

// NewPrompt is what routers see of text, the user's own words without the
// model's template.
func NewPrompt(m *llama.Model, text string) (Prompt, error) {
	tokens, err := m.Vocab.Tokenize(text, false)
	return Prompt{text, tokens}, err
}

// The kinds of features that [FeatureSpec].Kind puts together.
const (
	Ngrams    = "ngram"     // hashed n-grams of words and characters: needs the text alone
	Embedding = "embedding" // the model's token embeddings, pooled: needs the model file
)

// What of a long prompt counts. The beginning says what is wanted and the end
// says it again; the bound keeps the cost of routing below a millisecond.
const (
	endTokens = 512     // tokens at either end
	endBytes  = 4 << 10 // bytes of text at either end
)

const (
	defaultBuckets = 2048
	defaultWidth   = 256
	nScalars       = 5
)

// FeatureSpec says how prompts become vectors. It is stored in a profile: a
// router works with the very features that it was trained on. The zero value
// means n-grams and token embeddings with the default sizes.
type FeatureSpec struct {
	Kind    string // [Ngrams], [Embedding], or both joined by "+"; "" = "ngram+embedding"
	Buckets int    // hash buckets of the n-grams; 0 = 2048
	Width   int    // pooled vectors that are wider are projected to this width; 0 = 256
	Seed    uint64 // of that projection

	// Shift and Scale, (Dim,), put raw features on one scale: found by
	// [Features.Fit], nil before. An n-gram's scale is its inverse document
	// frequency.
	Shift, Scale []float32
}

// withDefaults fills in what was left open and refuses what is impossible.
func (s FeatureSpec) withDefaults() (FeatureSpec, error) {
	if s.Kind == "" {
		s.Kind = Ngrams + "+" + Embedding
	}
	if s.Buckets == 0 {
		s.Buckets = defaultBuckets
	}
	if s.Width == 0 {
		s.Width = defaultWidth
	}
	var seen []string
	for kind := range strings.SplitSeq(s.Kind, "+") {
		if kind != Ngrams && kind != Embedding {
			return s, fmt.Errorf("%w: kind %q in %q, want ngram or embedding, or both joined by +", ErrFeatures, kind, s.Kind)
		}
		if slices.Contains(seen, kind) {
			return s, fmt.Errorf("%w: kind %q is twice in %q", ErrFeatures, kind, s.Kind)
		}
		seen = append(seen, kind)
	}
	const most = 1 << 20 // a vector of 4 MB; no router is that wide
	if s.Buckets < 1 || s.Buckets > most || s.Width < 1 || s.Width > most {
		return s, fmt.Errorf("%w: %d buckets, width %d, want 1 to %d of each", ErrFeatures, s.Buckets, s.Width, most)
	}
	return s, nil
}

// Has reports whether a kind is among the features.
func (s FeatureSpec) Has(kind string) bool {
	return slices.Contains(strings.Split(s.Kind, "+"), kind)
}

// Sources are what features are made of besides the prompt.
type Sources struct {
	// Model is the path of the model's GGUF file, for [Embedding].
	Model string

	file *gguf.File // Model, open already: the features close it if they need it; nil = is opened
}

// part is one kind's stretch of the vector.
type part struct {
	kind     string
	from, to int
}

// Features turns prompts into vectors of fixed length. Any number of goroutines may
// use it, but for Fit and Close. Close it after use.
type Features struct {
	spec  FeatureSpec
	parts []part
	dim   int
	table *table // nil without Embedding
}

// NewFeatures makes what turns prompts into vectors. from may be nil for
// n-grams alone. The error wraps [ErrFeatures], or one of package gguf's.
func NewFeatures(spec FeatureSpec, from *Sources) (*Features, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, err
	}
	if from == nil {
		from = &Sources{}
	}
	f := &Features{spec: spec}
	if spec.Has(Embedding) {
		if from.Model == "" {
			return nil, fmt.Errorf("%w: kind %q needs the model's file", ErrFeatures, spec.Kind)
		}
		if f.table, err = openTable(from, spec.Width, spec.Seed); err != nil {
			return nil, err
		}
	}
	add := func(kind string, n int) {
		f.parts = append(f.parts, part{kind, f.dim, f.dim + n})
		f.dim += n
	}
	for kind := range strings.SplitSeq(spec.Kind, "+") {
		switch kind {
		case Ngrams:
			add(kind, spec.Buckets)
		case Embedding:
			add(kind, f.table.width)
		}
	}
	add("", nScalars)
	if spec.Scale != nil && (len(spec.Scale) != f.dim || len(spec.Shift) != f.dim) {
		f.Close()
		return nil, fmt.Errorf("%w: fitted for %d and %d values, this model and kind %q give %d", ErrFeatures, len(spec.Shift), len(spec.Scale), spec.Kind, f.dim)
	}
	return f, nil
}

// Close releases the model's file. Further calls do nothing.
func (f *Features) Close() error {
	if f.table == nil {
		return nil
	}
	return f.table.close()
}

// Spec gives the specification, with what was fitted.
func (f *Features) Spec() FeatureSpec { return f.spec }

// Dim is the length of the vectors.
func (f *Features) Dim() int { return f.dim }

// Fit finds the scale of every feature from the calibration prompts: inverse
// document frequencies of n-grams; mean and spread of everything else. Vectors
// made before and after do not compare.
func (f *Features) Fit(prompts []Prompt) error {
	if len(prompts) == 0 {
		return fmt.Errorf("%w: no prompts to fit to", ErrFeatures)
	}
	n := float64(len(prompts))
	x := make([]float32, f.dim)
	sum, square, seen := make([]float64, f.dim), make([]float64, f.dim), make([]float64, f.dim)
	for _, p := range prompts {
		if err := f.raw(x, p); err != nil {
			return err
		}
		for i, v := range x {
			sum[i] += float64(v)
			square[i] += float64(v) * float64(v)
			if v != 0 {
				seen[i]++
			}
		}
	}
	shift, scale := make([]float32, f.dim), make([]float32, f.dim)
	for _, part := range f.parts {
		for i := part.from; i < part.to; i++ {
			if part.kind == Ngrams {
				scale[i] = float32(1 + math.Log((1+n)/(1+seen[i]))) // as scikit-learn smooths it
				continue
			}
			mean := sum[i] / n
			shift[i] = float32(mean)
			spread := math.Sqrt(max(square[i]/n-mean*mean, 0))
			scale[i] = float32(1 / max(spread, leastSpread))
		}
	}
	f.spec.Shift, f.spec.Scale = shift, scale
	return nil
}

// leastSpread keeps features that hardly vary in the calibration data from
// being blown up; raw features are of order 0.01 to 10.
const leastSpread = 1e-3

// scalarNorm is the length that the few scalars have together beside parts of
// length 1, and scalarLimit how many standard deviations one of them may lie out.
const (
	scalarNorm  = 0.1
	scalarLimit = 4
)

// Vector writes a prompt's features, (Dim,), into dst. Each kind's part has
// length 1, or 0 for an empty prompt.
func (f *Features) Vector(dst []float32, p Prompt) error {
	if err := f.raw(dst, p); err != nil {
		return err
	}
	for _, part := range f.parts {
		x := dst[part.from:part.to]
		if f.spec.Scale != nil {
			shift, scale := f.spec.Shift[part.from:part.to], f.spec.Scale[part.from:part.to]
			for i := range x {
				x[i] = (x[i] - shift[i]) * scale[i]
			}
		}
		if part.kind == "" {
			for i := range x {
				x[i] = scalarNorm * min(max(x[i], -scalarLimit), scalarLimit)
			}
			continue
		}
		normalise(x)
	}
	return nil
}

// Vectors gives the features of many prompts, (len(prompts), Dim).
func (f *Features) Vectors(prompts []Prompt) ([][]float32, error) {
	x := make([][]float32, len(prompts))
	for i, p := range prompts {
		x[i] = make([]float32, f.dim)
		if err := f.Vector(x[i], p); err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i, err)
		}
	}
	return x, nil
}

// raw writes features before shift, scale and normalisation.
func (f *Features) raw(dst []float32, p Prompt) error {
	if len(dst) != f.dim {
		return fmt.Errorf("%w: room for %d values, %d needed", ErrFeatures, len(dst), f.dim)
	}
	clear(dst)
	head, tail := ends(p.Text)
	tokens := p.Tokens
	if len(tokens) > 2*endTokens {
		tokens = slices.Concat(tokens[:endTokens], tokens[len(tokens)-endTokens:])
	}
	for _, part := range f.parts {
		x := dst[part.from:part.to]
		switch part.kind {
		case Ngrams:
			ngrams(x, head)
			ngrams(x, tail)
			for i, v := range x { // sublinear: the tenth "the" says little
				if v != 0 {
					x[i] = float32(math.Copysign(math.Log1p(math.Abs(float64(v))), float64(v)))
				}
			}
		case Embedding:
			if err := f.table.pool(x, tokens); err != nil {
				return err
			}
		default:
			scalars(x, p.Text, head, tail)
		}
	}
	return nil
}

// ends cuts a long text down to its two ends, at characters.
func ends(text string) (head, tail string) {
	if len(text) <= 2*endBytes {
		return text, ""
	}
	from, to := len(text)-endBytes, endBytes
	for from < len(text) && !utf8.RuneStart(text[from]) {
		from++
	}
	for to > 0 && !utf8.RuneStart(text[to]) {
		to--
	}
	return text[:to], text[from:]
}

// scalars writes the features that are neither n-gram nor vector: length in
// bytes (logarithm), shares of digits and of non-ASCII characters, lines
// (logarithm), and whether something is asked.
func scalars(x []float32, text, head, tail string) {
	var n, digits, foreign, lines, question float64
	for _, half := range [2]string{head, tail} {
		for _, r := range half {
			n++
			switch {
			case r >= '0' && r <= '9':
				digits++
			case r == '\n':
				lines++
			case r == '?' || r == '？' || r == '؟':
				question = 1
			case r >= utf8.RuneSelf:
				foreign++
			}
		}
	}
	n = max(n, 1)
	for i, v := range [nScalars]float64{math.Log1p(float64(len(text))), digits / n, foreign / n, math.Log1p(lines), question} {
		x[i] = float32(v)
	}
}

// Hashing: FNV-1a's steps over characters instead of bytes, finished by one
// multiplication with the golden ratio, because FNV leaves the high bits poor.
const (
	fnvPrime  = 1099511628211
	fnvOffset = 14695981039346656037

	saltWord = fnvOffset ^ 1<<32 // sets words, pairs of words and characters apart
	saltPair = fnvOffset ^ 2<<32
	saltChar = fnvOffset ^ 3<<32

	fewestChars, mostChars = 3, 5 // of a character n-gram
)

// count adds one occurrence of a hashed n-gram. The sign from the hash makes
// collisions cancel on average (Weinberger et al., 2009).
func count(x []float32, hash uint64, weight float32) {
	hash ^= hash >> 32
	hash *= 0x9e3779b97f4a7c15
	bucket, _ := bits.Mul64(hash, uint64(len(x)))
	if hash&(1<<20) == 0 { // a middle bit: the highest made the bucket
		weight = -weight
	}
	x[bucket] += weight
}

// ngrams counts words, pairs of neighbouring words and runs of 3 to 5
// characters of text, in lower case, every digit as 0, runs of spaces as one.
// Punctuation marks are words of their own.
func ngrams(x []float32, text string) {
	if text == "" {
		return
	}
	var window [mostChars]uint64 // the last characters, the newest first
	inWindow := 0
	word, before := uint64(0), uint64(saltWord) // hash of the word under way, 0 = none; the word before it
	push := func(r rune) {
		copy(window[1:], window[:mostChars-1])
		window[0] = uint64(r)
		inWindow = min(inWindow+1, mostChars)
		hash := uint64(saltChar)
		for n := range inWindow {
			hash = (hash ^ window[n]) * fnvPrime
			if n+1 >= fewestChars {
				count(x, hash, 1)
			}
		}
	}
	end := func() {
		if word == 0 {
			return
		}
		count(x, word, 1)
		count(x, (saltPair^before)*fnvPrime^word, 1)
		word, before = 0, word
	}
	push(' ')
	for _, r := range text {
		r = fold(r)
		switch {
		case r == ' ':
			end()
			if window[0] == ' ' {
				continue
			}
		case isWord(r):
			if word == 0 {
				word = saltWord
			}
			word = (word ^ uint64(r)) * fnvPrime
		default:
			end()
			word = (saltWord ^ uint64(r)) * fnvPrime
			end()
		}
		push(r)
	}
	end()
	if window[0] != ' ' {
		push(' ')
	}
}

// fold puts characters together that mean the same to a router.
func fold(r rune) rune {
	if r < utf8.RuneSelf {
		switch {
		case 'a' <= r && r <= 'z':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		case '0' <= r && r <= '9':
			return '0'
		case r <= ' ' || r == 0x7f:
			return ' '
		}
		return r
	}
	switch {
	case unicode.IsSpace(r):
		return ' '
	case unicode.IsDigit(r):
		return '0'
	}
	return unicode.ToLower(r)
}

func isWord(r rune) bool {
	if r < utf8.RuneSelf {
		return 'a' <= r && r <= 'z' || r == '0'
	}
	return unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsNumber(r)
}

// normalise gives x the length 1; a zero vector stays.
func normalise(x []float32) {
	var square float64
	for _, v := range x {
		square += float64(v) * float64(v)
	}
	if square == 0 {
		return
	}
	scale := float32(1 / math.Sqrt(square))
	for i := range x {
		x[i] *= scale
	}
}
