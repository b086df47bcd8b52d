package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/lab/report"
)

// TestHarness lets lm-evaluation-harness, unchanged, score the demo model by HTTP: choices by
// their tokens' log-likelihoods, and answers that are generated in a chat, with the whole model
// and under a mask. Its accuracies are those of `gallop eval`.
func TestHarness(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("set GALLOP_LONG=1 to fetch lm-eval and run it")
	}
	model := demoModel(t)
	alone(t)
	build, err := filepath.Abs("../../build/clients")
	require.NoError(t, err)
	tasks, err := filepath.Abs("../../test/clients/lmeval")
	require.NoError(t, err)
	venv := filepath.Join(build, "lmeval")
	dir := t.TempDir()
	command := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1", "HF_HOME="+dir)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	wanted, err := os.ReadFile(filepath.Join(tasks, "requirements.txt"))
	require.NoError(t, err)
	stamp := filepath.Join(venv, "requirements.txt")
	if got, _ := os.ReadFile(stamp); string(got) != string(wanted) {
		command("python3", "-m", "venv", venv)
		command(venv+"/bin/pip", "install", "--quiet", "-r", filepath.Join(tasks, "requirements.txt"))
		require.NoError(t, os.WriteFile(stamp, wanted, 0o600))
	}

	writeHarnessData(t, dir)
	tokenizer := filepath.Join(dir, "tokenizer")
	writeTokenizer(t, model, tokenizer)
	p := startServe(t, "-m", model, "--alias", "demo", "-c", "256", "-t", "1", "--parallel", "8")

	// harness scores a task and gives the figures of its metrics.
	harness := func(task string, arguments map[string]any, more ...string) map[string]float64 {
		t.Helper()
		data, err := json.Marshal(arguments)
		require.NoError(t, err)
		out := filepath.Join(dir, "out.json")
		command(venv+"/bin/lm_eval", append([]string{"run", "--include_path", tasks, "--tasks", task, "--apply_chat_template", "--output_path", out, "--model_args", string(data)}, more...)...)
		written, err := filepath.Glob(filepath.Join(dir, "out*.json"))
		require.NoError(t, err)
		require.Len(t, written, 1)
		data, err = os.ReadFile(written[0])
		require.NoError(t, err)
		require.NoError(t, os.Remove(written[0]))
		var r struct{ Results map[string]map[string]any }
		require.NoError(t, json.Unmarshal(data, &r))
		figures := map[string]float64{}
		for name, v := range r.Results[task] {
			if f, ok := v.(float64); ok {
				figures[name] = f
			}
		}
		return figures
	}
	const mask = "3,5,7"
	eval := func(file string) map[string]report.Row {
		t.Helper()
		code, out, notes := invoke(t, "", "eval", "-t", "1", "--data", filepath.Join(dir, file), "--skip", mask, "--json")
		require.Equal(t, exitOK, code, notes)
		var rows []report.Row
		require.NoError(t, json.Unmarshal([]byte(out), &rows))
		require.Len(t, rows, 2)
		return map[string]report.Row{"whole": rows[0], "skip=" + mask: rows[1]}
	}
	choices, answers := eval("choices.jsonl"), eval("answers.jsonl")
	for words := range choices {
		got := harness("gallop_choices", map[string]any{
			"model": "demo@" + words, "base_url": p.url + "/v1/completions", "tokenizer_backend": "huggingface", "tokenizer": tokenizer, "num_concurrent": 4,
		}, "--model", "local-completions")
		// Not acc_norm: lm-eval counts the line break at the prompt's end as part of each choice, which
		// changes the log-likelihoods of all by the same amount, but not for each character.
		t.Logf("%s: choices: lm-eval %v, eval %v", words, got["acc,none"], *choices[words].Acc)
		require.InDelta(t, *choices[words].Acc, got["acc,none"], 1e-9)

		got = harness("gallop_answers", map[string]any{
			"model": "demo@" + words, "base_url": p.url + "/v1/chat/completions", "num_concurrent": 4,
		}, "--model", "local-chat-completions")
		t.Logf("%s: answers: lm-eval %v, eval %v", words, got["exact_match,none"], *answers[words].Accuracy)
		require.InDelta(t, *answers[words].Accuracy, got["exact_match,none"], 1e-9)
	}
	require.NotEqual(t, *answers["whole"].Accuracy, *answers["skip="+mask].Accuracy, "the mask can be told from the whole model")
	p.end(t)
}

// writeHarnessData writes answers.jsonl, prompts of the demo model's test data with their
// answers, and choices.jsonl, the same with three answers to other prompts of the task beside.
func writeHarnessData(t *testing.T, dir string) {
	t.Helper()
	const n = 120
	examples, _, err := dataset.Read([]string{"../../demo/test.jsonl"}, nil)
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(1, 2))
	others := map[string][]string{}
	for _, e := range examples {
		others[e.Task] = append(others[e.Task], e.Answer)
	}
	var answers, choices []byte
	line := func(to *[]byte, v any) {
		data, err := json.Marshal(v)
		require.NoError(t, err)
		*to = append(append(*to, data...), '\n')
	}
	for _, i := range random.Perm(len(examples))[:n] {
		e := examples[i]
		line(&answers, map[string]any{"prompt": e.Prompt, "answer": e.Answer})
		list, known := []string{e.Answer}, map[string]bool{e.Answer: true}
		for _, k := range random.Perm(len(others[e.Task])) {
			if a := others[e.Task][k]; len(list) < 4 && !known[a] {
				list, known[a] = append(list, a), true
			}
		}
		right := random.IntN(len(list))
		list[0], list[right] = list[right], list[0]
		line(&choices, map[string]any{"prompt": e.Prompt, "choices": list, "answer": right})
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "answers.jsonl"), answers, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "choices.jsonl"), choices, 0o600))
}

// writeTokenizer writes the demo model's vocabulary as a tokenizer of transformers.
func writeTokenizer(t *testing.T, model, dir string) {
	t.Helper()
	f, err := gguf.Open(model)
	require.NoError(t, err)
	defer f.Close()
	get := func(key string) any {
		v, ok := f.Metadata.Lookup(key)
		require.True(t, ok, key)
		return v
	}
	tokens, merges := get("tokenizer.ggml.tokens").([]string), get("tokenizer.ggml.merges").([]string)
	types := get("tokenizer.ggml.token_type").([]int32)
	require.Equal(t, "qwen2", get("tokenizer.ggml.pre"))
	const control = 3
	vocab := map[string]int{}
	var special []map[string]any
	for id, token := range tokens {
		vocab[token] = id
		if types[id] == control {
			special = append(special, map[string]any{"id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
		}
	}
	// The split of Qwen 2.
	const split = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	bytes := map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}
	write := func(name string, v any) {
		data, err := json.Marshal(v)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	require.NoError(t, os.Mkdir(dir, 0o700))
	write("tokenizer.json", map[string]any{
		"version": "1.0", "added_tokens": special, "normalizer": nil, "post_processor": nil, "decoder": bytes,
		"pre_tokenizer": map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Split", "pattern": map[string]string{"Regex": split}, "behavior": "Isolated", "invert": false}, bytes,
		}},
		"model": map[string]any{"type": "BPE", "vocab": vocab, "merges": merges},
	})
	end := get("tokenizer.ggml.eos_token_id").(uint32)
	write("tokenizer_config.json", map[string]any{
		"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens[end], "chat_template": get("tokenizer.chat_template"),
	})
}
