package server

import (
	"bytes"
	"os"
	"regexp"
	"testing"

	"github.com/prometheus/common/expfmt"
	prometheus "github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// TestMetrics parses a scrape as Prometheus does.
func TestMetrics(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	_, _ = postRaw(t, h, chatPath, `{`+hi+`,"stream":true}`)
	_, _ = post(t, h, chatPath, `{}`)
	_, data := get(t, h, "/metrics")
	parser := expfmt.NewTextParser(prometheus.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(data))
	require.NoError(t, err, "%s", data)
	value := func(name string) float64 {
		require.Contains(t, families, name)
		m := families[name].Metric[0]
		if m.Gauge != nil {
			return m.Gauge.GetValue()
		}
		return m.Counter.GetValue()
	}
	require.Positive(t, value("go_goroutines"))
	for name, want := range map[string]float64{
		"gallop_model_loaded": 1, "gallop_requests_total": 1, "gallop_requests_running": 0, "gallop_requests_waiting": 0,
		"gallop_prompt_tokens_total": 100, "gallop_cached_tokens_total": 40, "gallop_generated_tokens_total": 50, "gallop_escalated_tokens_total": 5,
		"gallop_drafted_tokens_total": 20, "gallop_accepted_tokens_total": 10, "gallop_weights_read_ratio": 0.75,
		"llamacpp:prompt_tokens_total": 60, "llamacpp:prompt_seconds_total": 2, "llamacpp:prompt_tokens_seconds": 30,
		"llamacpp:tokens_predicted_total": 50, "llamacpp:tokens_predicted_seconds_total": 5, "llamacpp:predicted_tokens_seconds": 10,
		"llamacpp:kv_cache_usage_ratio": 0.25, "llamacpp:kv_cache_tokens": 30, "llamacpp:requests_processing": 0, "llamacpp:requests_deferred": 0,
		"vllm:num_requests_waiting": 0, "vllm:num_requests_running": 0, "vllm:kv_cache_usage_perc": 0.25, "llamacpp:n_decode_total": 60, "llamacpp:spec_decode_num_draft_tokens_total": 20, "llamacpp:spec_decode_num_accepted_tokens_total": 10,
	} {
		require.Equal(t, want, value(name), name)
	}
	require.Equal(t, uint64(1), families["gallop_time_to_first_token_seconds"].Metric[0].Histogram.GetSampleCount())
	require.Equal(t, uint64(2), families["gallop_token_gap_seconds"].Metric[0].Histogram.GetSampleCount())
	statuses := map[string]float64{}
	for _, m := range families["gallop_http_requests_total"].Metric {
		statuses[m.Label[0].GetValue()+" "+m.Label[1].GetValue()] = m.Counter.GetValue()
	}
	require.Equal(t, map[string]float64{"POST /v1/chat/completions 200": 1, "POST /v1/chat/completions 400": 1}, statuses)
}

// TestDashboard finds each metric that the Grafana dashboard asks for in a scrape. The module
// test/deploy parses its expressions and its panels.
func TestDashboard(t *testing.T) {
	dashboard, err := os.ReadFile("../../deploy/grafana.json")
	require.NoError(t, err)
	h := serve(t, newFake(), nil)
	_, _ = postRaw(t, h, chatPath, `{`+hi+`,"stream":true}`)
	_, scrape := get(t, h, "/metrics")
	exported := map[string]bool{}
	for _, line := range regexp.MustCompile(`(?m)^[a-z][\w:]*`).FindAll(scrape, -1) {
		exported[string(line)] = true
	}
	own := map[string]bool{}
	for _, m := range regexp.MustCompile(`\b(gallop_|llamacpp:|go_|process_)\w+`).FindAllSubmatch(dashboard, -1) {
		require.True(t, exported[string(m[0])], "the dashboard asks for %s, which /metrics does not have", m[0])
		own[string(m[1])] = true
	}
	require.True(t, own["gallop_"] && own["llamacpp:"])
}
