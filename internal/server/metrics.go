package server

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
)

// metrics counts for Prometheus: gallop_* by model, and the names of llama-server, which sum
// up all models, so that its dashboards work.
type metrics struct {
	http.Handler

	models   *models
	requests *prometheus.CounterVec   // by route and status
	first    *prometheus.HistogramVec // by model
	gaps     *prometheus.HistogramVec
}

func newMetrics(of *models) *metrics {
	m := &metrics{
		models: of,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gallop_http_requests_total",
			Help: "HTTP requests that have ended, by route and status; 499 = the client was gone."}, []string{"route", "status"}),
		first: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "gallop_time_to_first_token_seconds",
			Help: "Time from a request to the first token of an answer.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 16)}, []string{"model"}),
		gaps: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "gallop_token_gap_seconds",
			Help: "Time between two pieces of an answer, which are mostly a token each.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}, []string{"model"}),
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.requests, m.first, m.gaps, m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.Handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return m
}

// count counts a request that has ended.
func (m *metrics) count(route string, status int) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}

// hear takes the time of a step of an answer: last is when the one before it came.
func (m *metrics) hear(model string, s *wire.Step, begun time.Time, last *time.Time) {
	if len(s.Pieces) == 0 && len(s.Tokens) == 0 {
		return
	}
	now := time.Now()
	if last.IsZero() {
		m.first.WithLabelValues(model).Observe(now.Sub(begun).Seconds())
	} else {
		m.gaps.WithLabelValues(model).Observe(now.Sub(*last).Seconds())
	}
	*last = now
}

// statMetric is a figure of [gallop.Stats].
type statMetric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*gallop.Stats) float64
}

func newStat(name, help string, kind prometheus.ValueType, of func(*gallop.Stats) float64) statMetric {
	return statMetric{prometheus.NewDesc("gallop_"+name, help, []string{"model"}, nil), kind, of}
}

var loadedDesc = prometheus.NewDesc("gallop_model_loaded", "1 while the model is loaded, else 0.", []string{"model"}, nil)

// statMetrics are by model.
var statMetrics = []statMetric{
	newStat("requests_running", "Requests that are being answered.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return float64(s.Running) }),
	newStat("requests_waiting", "Requests that wait for their turn.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return float64(s.Waiting) }),
	newStat("requests_total", "Requests that have ended, whatever the end.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Requests) }),
	newStat("requests_failed_total", "Requests that failed.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Failed) }),
	newStat("requests_cancelled_total", "Requests whose clients were gone.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Cancelled) }),
	newStat("prompt_tokens_total", "Tokens of prompts.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.PromptTokens) }),
	newStat("cached_tokens_total", "Tokens of prompts that were taken from the KV cache.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.CachedTokens) }),
	newStat("generated_tokens_total", "Tokens of answers.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Generated) }),
	newStat("escalated_tokens_total", "Tokens that the mask left in doubt and the whole model decided.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Escalated) }),
	newStat("drafted_tokens_total", "Tokens that were drafted.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Drafted) }),
	newStat("accepted_tokens_total", "Drafted tokens that the whole model accepted.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Accepted) }),
	newStat("decodes_total", "Calls of llama.cpp.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Decodes) }),
	newStat("prefill_seconds_total", "Time of decoding prompts.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return s.PrefillSeconds }),
	newStat("decode_seconds_total", "Time of generating.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return s.DecodeSeconds }),
	newStat("weights_read_ratio", "Share of the weights' bytes that a generated token needed, mean.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return s.WeightsRead }),
	newStat("kv_cache_used_tokens", "Tokens in the KV cache.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return float64(s.CacheUsed) }),
	newStat("kv_cache_size_tokens", "Tokens that the KV cache has room for.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return float64(s.CacheOf) }),
}

func newSum(name, help string, kind prometheus.ValueType, of func(*gallop.Stats) float64) statMetric {
	return statMetric{prometheus.NewDesc("llamacpp:"+name, help, nil, nil), kind, of}
}

// sumMetrics are llama-server's, over all models.
var sumMetrics = []statMetric{
	newSum("prompt_tokens_total", "Tokens of prompts that were decoded.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.PromptTokens - s.CachedTokens) }),
	newSum("prompt_seconds_total", "Seconds spent on decoding prompts.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return s.PrefillSeconds }),
	newSum("tokens_predicted_total", "Tokens of answers.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Generated) }),
	newSum("tokens_predicted_seconds_total", "Seconds spent on generating.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return s.DecodeSeconds }),
	newSum("prompt_tokens_seconds", "Tokens of prompts decoded in a second, mean.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return ratio(float64(s.PromptTokens-s.CachedTokens), s.PrefillSeconds) }),
	newSum("predicted_tokens_seconds", "Tokens generated in a second, mean.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return ratio(float64(s.Generated), s.DecodeSeconds) }),
	newSum("kv_cache_usage_ratio", "Share of the KV cache that is in use, 0 to 1.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return ratio(float64(s.CacheUsed), float64(s.CacheOf)) }),
	newSum("kv_cache_tokens", "Tokens in the KV cache of all models.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return float64(s.CacheUsed) }),
	newSum("requests_processing", "Requests that are being answered, of all models.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return float64(s.Running) }),
	newSum("requests_deferred", "Requests that wait, of all models.", prometheus.GaugeValue, func(s *gallop.Stats) float64 { return float64(s.Waiting) }),
	newSum("n_decode_total", "Calls of llama_decode.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Decodes) }),
	newSum("spec_decode_num_draft_tokens_total", "Tokens that were drafted.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Drafted) }),
	newSum("spec_decode_num_accepted_tokens_total", "Drafted tokens that were accepted.", prometheus.CounterValue, func(s *gallop.Stats) float64 { return float64(s.Accepted) }),
}

func newPicked(name, help string, of func(*gallop.Stats) float64) statMetric {
	return statMetric{prometheus.NewDesc("vllm:"+name, help, []string{"model_name"}, nil), prometheus.GaugeValue, of}
}

// pickedMetrics are what an endpoint picker of the Gateway API's inference extension asks for, under the
// names of vLLM that its model server protocol lists first.
var pickedMetrics = []statMetric{
	newPicked("num_requests_waiting", "Requests that wait for their turn.", func(s *gallop.Stats) float64 { return float64(s.Waiting) }),
	newPicked("num_requests_running", "Requests that are being answered.", func(s *gallop.Stats) float64 { return float64(s.Running) }),
	newPicked("kv_cache_usage_perc", "Share of the KV cache that is in use, 0 to 1.", func(s *gallop.Stats) float64 { return ratio(float64(s.CacheUsed), float64(s.CacheOf)) }),
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Describe is for Prometheus.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	to <- loadedDesc
	for _, s := range statMetrics {
		to <- s.desc
	}
	for _, s := range slices.Concat(sumMetrics, pickedMetrics) {
		to <- s.desc
	}
}

// Collect is for Prometheus. It waits for no decode.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	var sum gallop.Stats
	for _, s := range m.models.all() {
		loaded := 0.0
		if s.loaded {
			loaded = 1
		}
		to <- prometheus.MustNewConstMetric(loadedDesc, prometheus.GaugeValue, loaded, s.Name)
		for _, stat := range slices.Concat(statMetrics, pickedMetrics) {
			to <- prometheus.MustNewConstMetric(stat.desc, stat.kind, stat.of(&s.stats), s.Name)
		}
		sum = addCounters(sum, s.stats)
		sum.Running += s.stats.Running
		sum.Waiting += s.stats.Waiting
		sum.CacheUsed += s.stats.CacheUsed
		sum.CacheOf += s.stats.CacheOf
	}
	for _, stat := range sumMetrics {
		to <- prometheus.MustNewConstMetric(stat.desc, stat.kind, stat.of(&sum))
	}
}
