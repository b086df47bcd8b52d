package draft

import "github.com/gallop-llm/gallop/llama"

// lookup finds where the last tokens of a text occurred in it before: what came
// behind them then is a draft that costs nothing.
type lookup struct {
	text []llama.Token
	last [longestGram - shortestGram + 1]map[gram]int // where the token behind a gram of each length stands
}

// Grams of these lengths are looked up, in tokens. Shorter ones occur by chance;
// longer ones add nothing, as matches are told apart by their real length.
const (
	shortestGram = 2
	longestGram  = 4
)

type gram [longestGram]llama.Token

// gramAt gives the n tokens that end before place end.
func (l *lookup) gramAt(end, n int) (g gram) {
	for i := range g {
		g[i] = llama.NoToken
	}
	copy(g[:n], l.text[end-n:end])
	return g
}

// reset starts over with a text.
func (l *lookup) reset(text []llama.Token) {
	l.text = l.text[:0]
	for i := range l.last {
		if l.last[i] == nil {
			l.last[i] = map[gram]int{}
		}
		clear(l.last[i])
	}
	for _, t := range text {
		l.add(t)
	}
}

// add appends a token. The grams that end before it can be found from now on;
// those that end with it have nothing behind them yet.
func (l *lookup) add(t llama.Token) {
	end := len(l.text)
	for n := shortestGram; n <= min(longestGram, end); n++ {
		l.last[n-shortestGram][l.gramAt(end, n)] = end
	}
	l.text = append(l.text, t)
}

// draft appends to dst up to most tokens that came behind the longest of the
// text's last grams where it last occurred. match is how many tokens before
// agree, up to longestMatch; 0 = it never occurred.
func (l *lookup) draft(dst []llama.Token, most int) (draft []llama.Token, match int) {
	end := len(l.text)
	for n := min(longestGram, end); n >= shortestGram; n-- {
		at, ok := l.last[n-shortestGram][l.gramAt(end, n)]
		if !ok {
			continue
		}
		match = n
		for match < min(at, longestMatch) && l.text[at-match-1] == l.text[end-match-1] {
			match++
		}
		// What is looked up may run into the draft itself: a text that repeats.
		for i := range most {
			if at+i < end {
				dst = append(dst, l.text[at+i])
			} else {
				dst = append(dst, dst[len(dst)-(end-at)])
			}
		}
		return dst, match
	}
	return dst, 0
}

// longestMatch is how far back a match is followed, in tokens.
const longestMatch = 32

// matchClass is the class of a looked-up draft: longer matches are surer.
func matchClass(match int) int {
	class := match - shortestGram
	if class > 2 { // 5 to 7, 8 to 15, 16 to 31 and beyond each count as one
		class = 3
		for length := 8; match >= length && class < sureness-1; length *= 2 {
			class++
		}
	}
	return class
}
