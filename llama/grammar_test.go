package llama_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

// series joins n texts that a format makes of their numbers.
func series(format, sep string, n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(format, "%n", fmt.Sprint(i)), "%m", fmt.Sprint(i+1))
	}
	return strings.Join(parts, sep)
}

func TestCheckGrammarTakes(t *testing.T) {
	for name, text := range map[string]string{
		"everything": "# a comment\nroot ::= (\"a\" | [b-d] # another\n | [^\\n\\]-])* x-1 \"\\x41\\u00e4\\U0001F600\\\"\"\n\nx-1 ::= . <[5]> !<[6]> \"\"\r\n" +
			"y ::= \"a\"{2} \"b\"{2,} \"c\"{ 2 , 4 } \"d\"{0,0} \"e\"+ \"f\"? | ",
		"a set of its own end":   `root ::= [a\]-] [-a] []`,
		"repetition of nothing":  `root ::= (("a"*)* "b"?)* "c"`,
		"right recursion":        "root ::= \"(\" root \")\" | \"a\"",
		"recursion in a circle":  "root ::= \"a\" x\nx ::= \"b\" root | \"\"",
		"many words":             "root ::= " + series(`"v%n"`, " | ", llama.MaxGrammarWays),
		"many optional elements": "root ::= " + series(`"a"?`, " ", llama.MaxGrammarSkips),
		"a chain of rules":       "root ::= a0\n" + series("a%n ::= a%m", "\n", 20_000) + "\na20000 ::= \"x\"",
		"defined later":          "root ::= x\nx ::= \"a\"",
		"defined twice":          "root ::= \"a\"\nroot ::= \"b\"", // as in llama.cpp the last one counts
		"the most repetitions":   `root ::= "a"{0,2000}`,
		"nested repetitions":     `root ::= ("a"{100} "b"){100}`,
	} {
		require.NoError(t, llama.CheckGrammar(text), name)
	}
}

func TestCheckGrammarRefuses(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{`root ::= "a"{2,1}`, "line 1: {2,1} is from more to fewer repetitions"},
		{`root ::= ("a" "b"{3,2})*`, "{3,2} is from more to fewer"},
		{`root ::= [a-z]{1,0}`, "{1,0} is from more to fewer"},
		{`root ::= "a"{2001}`, "the most is 2000"},
		{`root ::= "a"{0,99999999999999999999999}`, "the most is 2000"},
		{`root ::= "a"{}`, "want a number of repetitions"},
		{`root ::= "a"{,3}`, "want a number of repetitions"},
		{`root ::= "a"{-1}`, "want a number of repetitions"},
		{`root ::= "a"{1,2`, "want '}'"},
		{"root ::= " + strings.Repeat(`"`+strings.Repeat("a", 1000)+`"{1000} `, 2), "over 500000 elements"},
		{"root ::= " + series(`("a"{0,2000})`, " ", 20), "over 30000 rules"},
		{"root ::= a0\n" + series("a%n ::= a%m", "\n", 40_000) + "\na40000 ::= \"x\"", "over 30000 rules"},
		{"root ::= " + series("(\"a%n\")", " ", 40_000), "over 30000 rules"},
		{"root ::= " + series(`"a"?`, " ", llama.MaxGrammarSkips+1), `rule "root" can leave out over 128 elements`},
		{"root ::= \"x\" " + series(`"a"?`, " ", llama.MaxGrammarSkips+1), `rule "root" can leave out over 128 elements`},
		{"root ::= x0\n" + series("x%n ::= \"a%n\"? x%m", "\n", 200) + "\nx200 ::= \"\"", "can leave out over 128 elements"},
		{"root ::= " + series(`"v%n"`, " | ", llama.MaxGrammarWays+1), "over 4096 ways"},
		{`root ::= ("a"{0,100}){0,100}`, "over"},
		{"root ::= x\nx ::= y \"a\"\ny ::= z\nz ::= x | \"b\"", `left recursion: rule "x"`},
		{"root ::= \"\" x\nx ::= (x | \"a\") \"b\"", `left recursion: rule "x"`},
		{"root ::= \"q\"? root \"a\"", `left recursion: rule "root"`},
		{"root ::= x root | \"b\"\nx ::= \"a\"?", "left recursion"},
		{"root ::= \"a\"\nx ::= y", `line 2: rule "y" is used and nowhere defined`},
		{"", "no rule 'root'"},
		{"root", "want ::= behind"},
		{"root ::= *", "nothing to repeat"},
		{`root ::= ""*`, "nothing to repeat"},
		{`root ::= "a" @`, "want an element or the end of the line"},
		{`root ::= foo_bar`, "want an element or the end of the line"},
		{`root ::= 'a'`, "want an element or the end of the line"},
		{`root ::= [z-a]`, "the range from 'z' to 'a' is empty"},
		{`root ::= "\q"`, `unknown escape \q`},
		{`root ::= "\u12"`, "wants 4 hexadecimal digits"},
		{`root ::= "\UFFFFFFFF"`, "wants 8 hexadecimal digits"},
		{`root ::= "\`, "unknown escape"},
		{`root ::= <[99999999999]>`, "is no token's number"},
		{`root ::= <abc`, "want a token"},
		{`root ::= !"a"`, "want a token"},
		{`root ::= ("a" | )) "b"`, "want an element or the end of the line"},
		{strings.Repeat("#", llama.MaxGrammarBytes+1), "the most is"},
	} {
		err := llama.CheckGrammar(c.text)
		require.ErrorIs(t, err, llama.ErrGrammar, "%.60q", c.text)
		require.ErrorContains(t, err, c.says)
		require.NotContains(t, err.Error(), "\n")
		require.Less(t, len(err.Error()), 200)
	}
}

// FuzzGrammar gives llama.cpp each grammar that the check passes. It must neither
// fail in a way that would end the process nor take long.
func FuzzGrammar(f *testing.F) {
	for _, text := range []string{
		"root ::= (\"a\" | [b-d] | [^\\n\\]-])* x-1\nx-1 ::= . <[5]> !<[6]>", `root ::= "a"{2,4} "b"{0,} "c"+ ("d"?)*`,
		"root ::= \"(\" root \")\" | \"a\" x\nx ::= \"b\" root | \"\"", "root ::= x root | \"b\"\nx ::= \"a\"?", `root ::= "a"{2,1}`,
	} {
		f.Add(text)
	}
	llamatest.Library(f)
	m := llamatest.Small(f, "llama")
	f.Fuzz(func(t *testing.T, text string) {
		late := time.AfterFunc(10*time.Second, func() { panic(fmt.Sprintf("llama.cpp does not get done with %q", text)) })
		defer late.Stop()
		before := llama.Escapes()
		s, err := m.NewSampler(llama.Sampling{Grammar: text})
		require.Equal(t, before, llama.Escapes(), "llama.cpp fails over a grammar that was passed")
		if err == nil {
			require.NoError(t, s.Close())
		}
	})
}

// TestAmbiguousGrammars has grammars that can be read in twice as many ways with each
// character, or in the square or cube of their number: sampling ends with an error before
// that takes long or much memory. What is only long, or has many alternatives, goes on.
func TestAmbiguousGrammars(t *testing.T) {
	llamatest.Library(t)
	if runtime.GOOS == "darwin" {
		t.Skip("nobody has tried whether llama.cpp's allocations are counted here")
	}
	m := llamatest.Small(t, "llama")
	at := small(t, m)
	decode(t, at, prompt(3), 0, none)
	letters := byteTokens(t, m.Vocab)
	for name, c := range map[string]struct {
		grammar string
		ends    bool // with an error
	}{
		"two ends":          {`root ::= "a" root "b" | "a" root "c" | "d"`, true},
		"three ends":        {`root ::= "a" root "b" | "a" root "c" | "a" root "d" | "d"`, true},
		"sums":              {"root ::= x \"=\"\nx ::= \"a\" x x | \"a\"", false}, // ways are as many as characters
		"alike":             {`root ::= ("a" | "a")* "b"`, false},
		"alike and nested":  {`root ::= (("a" | "a")+ | "a"*)* "b"`, false},
		"right recursion":   {`root ::= "a" root "b" | "d"`, false},
		"many alternatives": {"root ::= (" + series(`"aaaaaaaa%n"`, " | ", 1000) + `)* "a"* "b"`, false},
		"the most":          {"root ::= (" + series(`"aaaaaaaa%n"`, " | ", llama.MaxGrammarWays-10) + `) "b" | "a"* "b"`, false},
		"any text":          {`root ::= .* "b"?`, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := llama.Live()
			s, err := m.NewSampler(llama.Sampling{Grammar: c.grammar, LogitBias: map[llama.Token]float32{letters['a']: 1e6}})
			require.NoError(t, err)
			defer func() { require.NoError(t, s.Close()); require.Equal(t, before, llama.Live()) }()
			start, n := time.Now(), 0
			for ; n < 300 && err == nil; n++ {
				var token llama.Token
				if token, err = s.Sample(at, -1); err == nil {
					require.Equal(t, letters['a'], token)
				}
			}
			t.Log(n, time.Since(start), err)
			if !c.ends {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, llama.ErrGrammar)
			require.ErrorContains(t, err, "ambiguous")
			again, err := s.Clone()
			require.NoError(t, err)
			_, err = again.Sample(at, -1)
			require.ErrorIs(t, err, llama.ErrGrammar)
			require.NoError(t, again.Close())
			s.Reset()
			_, err = s.Sample(at, -1)
			require.NoError(t, err, "a new answer begins")
		})
	}
}
