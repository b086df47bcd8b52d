package llama_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/llama"
)

// vocabularies are the models whose vocabularies are at hand: the generated one and
// the demo's; with GALLOP_LONG those of the real models that are there, too.
func vocabularies(t *testing.T) map[string]*llama.Model {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	all := map[string]*llama.Model{"generated": withTemplate(t, chatML), "demo": llamatest.Open(t, path)}
	if os.Getenv("GALLOP_LONG") == "" {
		return all
	}
	folder, err := realmodel.Folder()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(folder, "*.gguf"))
	require.NoError(t, err)
	for _, file := range files {
		m, err := llama.LoadModel(t.Context(), file, &llama.ModelOptions{VocabOnly: true})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, m.Close()) })
		all[filepath.Base(file)] = m
	}
	return all
}

// controls are the texts of a vocabulary's control tokens.
func controls(m *llama.Model) (list []string) {
	for tok := range llama.Token(m.Vocab.Size) {
		if text := string(m.Vocab.AppendPiece(nil, tok, true)); m.Vocab.IsControl(tok) && text != "" {
			list = append(list, text)
		}
	}
	return list
}

func countControls(v *llama.Vocab, tokens []llama.Token) (n int) {
	for _, tok := range tokens {
		if v.IsControl(tok) {
			n++
		}
	}
	return n
}

// TestTypedTextHasNoControlTokens renders conversations in which every typed part
// is full of control tokens' texts, whole, split and with what templates cut out of
// a text between them. As many control tokens come out as with harmless words.
func TestTypedTextHasNoControlTokens(t *testing.T) {
	formats := map[string]string{"its own": "", "chatml by name": "chatml", "headers": headers, "turns": turns, "inst": inst,
		"cuts out reasoning": `{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set c = m.content %}` +
			`{% if '<think>' in c %}{% set c = c.split('<think>')[0] + c.split('</think>')[-1] %}{% endif %}` +
			`{{ c | replace('~', '') | trim }}{{ '<|im_end|>' }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}`,
	}
	for name, m := range vocabularies(t) {
		t.Run(name, func(t *testing.T) {
			markers := controls(m)
			require.NotEmpty(t, markers)
			rng := rand.New(rand.NewPCG(7, 7))
			nasty := func() string {
				var b strings.Builder
				for range 1 + rng.IntN(4) {
					marker := markers[rng.IntN(len(markers))]
					runes := []rune(marker)
					at := rng.IntN(len(runes))
					switch head, tail := string(runes[:at]), string(runes[at:]); rng.IntN(5) {
					case 0:
						b.WriteString(head + "~" + tail)
					case 1:
						b.WriteString(head + "<think>x</think>" + tail)
					case 2:
						b.WriteString(tail + " " + head)
					default:
						b.WriteString(marker)
					}
					b.WriteString([]string{"", " ", "\n", "ab", "日"}[rng.IntN(5)])
				}
				return b.String()
			}
			for format, template := range formats {
				if template != "" {
					require.NoError(t, m.SetTemplate(template))
				} else if m.Template() == "" {
					continue
				}
				for range 40 {
					talk := func(text func() string) llama.Conversation {
						call, err := json.Marshal(map[string]any{"tool_calls": []any{map[string]any{"function": map[string]any{"name": "f", "arguments": map[string]any{"x": text()}}}}})
						require.NoError(t, err)
						return llama.Conversation{Answer: true, Messages: []llama.Message{
							{Role: "user", Content: text()}, {Role: "assistant", Content: text(), Fields: call}, {Role: "user", Content: text()},
						}}
					}
					rendered, err := m.Render(talk(nasty))
					require.NoError(t, err, format)
					tokens, err := m.Vocab.TokenizeText(rendered)
					require.NoError(t, err)
					plain, err := m.Render(talk(func() string { return "word" }))
					require.NoError(t, err)
					want, err := m.Vocab.TokenizeText(plain)
					require.NoError(t, err)
					require.Equal(t, countControls(m.Vocab, want), countControls(m.Vocab, tokens), "%s: %q", format, rendered)
				}
			}
		})
	}
}

// TestHarmlessTextIsTokenizedAsAWhole: where nobody typed a control token's text,
// tokens are those of the text with its markers.
func TestHarmlessTextIsTokenizedAsAWhole(t *testing.T) {
	for name, m := range vocabularies(t) {
		t.Run(name, func(t *testing.T) {
			for _, text := range texts {
				if strings.Contains(text, "<|im_end|>") || text == "" {
					continue
				}
				rendered, err := m.Render(llama.Conversation{Messages: []llama.Message{{Role: "user", Content: text}}, Answer: true})
				require.NoError(t, err)
				got, err := m.Vocab.TokenizeText(rendered)
				require.NoError(t, err)
				want, err := m.Vocab.Tokenize(rendered.String(), true)
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
		})
	}
}

// TestTypedMarkersStayText: with a control token typed, everything else is
// tokenised as without, and the text is kept whole.
func TestTypedMarkersStayText(t *testing.T) {
	m := withTemplate(t, chatML)
	rendered, err := m.Render(llama.Conversation{Messages: []llama.Message{{Role: "user", Content: "a <|im_end|> b<|im_start|>"}}, Answer: true})
	require.NoError(t, err)
	tokens, err := m.Vocab.TokenizeText(rendered)
	require.NoError(t, err)
	require.Equal(t, rendered.String(), m.Vocab.Text(tokens, true))
	var marks []llama.Token
	for _, tok := range tokens {
		if m.Vocab.IsControl(tok) {
			marks = append(marks, tok)
		}
	}
	require.Equal(t, []llama.Token{randmodel.TokenMessage, randmodel.TokenEOT, randmodel.TokenMessage}, marks)

	// A role that no template knows is typed, too.
	m = withTemplate(t, "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% endfor %}")
	rendered, err = m.Render(llama.Conversation{Messages: []llama.Message{{Role: "im_end"}}})
	require.NoError(t, err)
	tokens, err = m.Vocab.TokenizeText(rendered)
	require.NoError(t, err)
	require.Zero(t, countControls(m.Vocab, tokens))
}

// TestOneBOS counts BOS and EOS over templates and vocabularies that do and do not
// add them.
func TestOneBOS(t *testing.T) {
	llamatest.Library(t)
	for _, addBOS := range []bool{false, true} {
		for _, addEOS := range []bool{false, true} {
			path := llamatest.Rewrite(t, llamatest.Tiny(t, 1), func(meta *gguf.Metadata) {
				meta.Set("tokenizer.ggml.add_bos_token", addBOS)
				meta.Set("tokenizer.ggml.add_eos_token", addEOS)
			})
			m := llamatest.Open(t, path)
			count := func(tokens []llama.Token, tok llama.Token) (n int) {
				for _, got := range tokens {
					if got == tok {
						n++
					}
				}
				return n
			}
			for template, writes := range map[string]bool{
				chatML:                        false,
				headers:                       true,
				"{{ bos_token * 3 }}" + turns: true,
				"{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}": true,
				"{% for m in messages %}{{ m.content }}{% endfor %}":                               false,
				"chatml": false,
			} {
				require.NoError(t, m.SetTemplate(template))
				// The last: the BOS that somebody typed is text.
				for _, text := range []string{"hi", "<|begin|>", "<|begin|>\n<|begin|>hi <|endoftext|>"} {
					rendered, err := m.Render(llama.Conversation{Messages: []llama.Message{{Role: "user", Content: text}}, Answer: true})
					require.NoError(t, err)
					tokens, err := m.Vocab.TokenizeText(rendered)
					require.NoError(t, err)
					want := 0
					if addBOS || writes {
						want = 1
						require.Equal(t, m.Vocab.BOS, tokens[0])
					}
					require.Equal(t, want, count(tokens, m.Vocab.BOS), "%v %q %q", addBOS, template, text)
					require.Zero(t, count(tokens, m.Vocab.EOS), "%v %q %q", addEOS, template, text)
				}
			}
			tokens, err := m.Vocab.Tokenize("hi", true)
			require.NoError(t, err)
			require.Zero(t, count(tokens, m.Vocab.EOS), "a text to be continued has no end")
		}
	}
}

// TestTemplatesOwnEnd: what a template writes behind an answer ends one.
func TestTemplatesOwnEnd(t *testing.T) {
	m := withTemplate(t, "")
	message := llama.Token(randmodel.TokenMessage)
	require.False(t, m.Vocab.IsEnd(message))
	require.NoError(t, m.SetTemplate("{% for m in messages %}{{ m.role + ': ' + m.content + '\n<|im_start|>\n' }}{% endfor %}"))
	require.True(t, m.Vocab.IsEnd(message))
	require.True(t, m.Vocab.IsEnd(m.Vocab.EOS), "beside the vocabulary's")
	require.NoError(t, m.SetTemplate(chatML))
	require.False(t, m.Vocab.IsEnd(message), "another template ends answers otherwise")
	require.True(t, withTemplate(t, "{% for m in messages %}{{ m.content + '<|im_start|>' }}{% endfor %}").Vocab.IsEnd(message), "from the file")
}

func TestTemplateVariables(t *testing.T) {
	m := withTemplate(t, "{{ enable_thinking is defined and enable_thinking }} {{ tools | tojson }} {{ messages[0].name }} {{ messages[0].content }}")
	c := llama.Conversation{Messages: []llama.Message{{Role: "user", Content: "x", Fields: json.RawMessage(`{"name":"n","content":null}`)}},
		Tools: json.RawMessage(`[{"b":1,"a":"é"}]`)}
	rendered, err := m.Render(c)
	require.NoError(t, err)
	require.Equal(t, `False [{"b": 1, "a": "é"}] n None`, rendered.String())
	require.NoError(t, m.SetTemplateVariables(json.RawMessage(`{"enable_thinking":true}`)))
	rendered, err = m.Render(c)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(rendered.String(), "True "))
	c.Variables = json.RawMessage(`{"enable_thinking":false}`)
	rendered, err = m.Render(c)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(rendered.String(), "False "))
	for _, broken := range []string{"[1]", "{", "{}x", "x"} {
		require.ErrorIs(t, m.SetTemplateVariables(json.RawMessage(broken)), llama.ErrTemplate)
	}
	for _, broken := range []llama.Conversation{
		{Messages: c.Messages, Tools: json.RawMessage("[")},
		{Messages: c.Messages, Variables: json.RawMessage("1")},
		{Messages: []llama.Message{{Role: "user", Fields: json.RawMessage(`"x"`)}}},
	} {
		_, err = m.Render(broken)
		require.ErrorIs(t, err, llama.ErrTemplate)
	}
}

// TestBuiltinFormats: with a stand-in for what was typed, llama.cpp's formats come
// out as with the text itself.
func TestBuiltinFormats(t *testing.T) {
	m := withTemplate(t, chatML)
	for _, format := range []string{"chatml", "llama2", "llama2-sys", "llama2-sys-bos", "llama2-sys-strip", "mistral-v1", "mistral-v3",
		"mistral-v3-tekken", "mistral-v7", "phi3", "phi4", "falcon3", "zephyr", "monarch", "gemma", "orion", "openchat", "vicuna",
		"vicuna-orca", "deepseek", "deepseek2", "deepseek3", "command-r", "llama3", "chatglm3", "chatglm4", "minicpm", "exaone3",
		"rwkv-world", "granite", "gigachat", "megrez", "smolvlm"} {
		t.Run(format, func(t *testing.T) {
			require.NoError(t, m.SetTemplate(format))
			for _, pad := range []string{"", " ", " \n"} {
				messages := slices.Clone(conversation)
				for i := range messages {
					messages[i].Content = pad + messages[i].Content + pad
				}
				got, err := m.ApplyTemplate(messages, true)
				require.NoError(t, err)
				want, err := llama.BuiltinTemplate(format, messages, true)
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
		})
	}
}

// TestRealTemplates renders the templates of the real models that are there.
func TestRealTemplates(t *testing.T) {
	for name, m := range vocabularies(t) {
		_, err := m.ApplyTemplate(question, true)
		require.NoError(t, err, name)
	}
}
