package main

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"

	"github.com/gallop-llm/gallop/internal/stats"
)

// costs are what a replica's work takes, from build/serve.json, in seconds.
type costs struct {
	step   []float64 // (seats+1,) a decode of one token of each of k answers with nothing before them; [0] = 0
	read   float64   // a token of a prompt, likewise
	behind float64   // what either takes more for each token before it
	firsts []float64 // first tokens of one client's turns, whose conversations are in the cache
	unread []float64 // (len(firsts),) tokens of their prompts that were read nevertheless
	cores  []float64 // (seats+1,) cores in use while k answers are written, clients' included
}

// affinity is how a balancer chooses the replica of a request.
type affinity string

const (
	hashed affinity = "consistent hash" // of the conversation
	drawn  affinity = "random"
	least  affinity = "least busy" // of all replicas
)

// fleet is what is simulated.
type fleet struct {
	costs
	replicas int
	perHost  int // replicas that share a machine's cores
	hostCPU  float64
	slowdown float64 // how many times as long as costs say everything takes; 0 = 1
	seats    int     // answers of a replica at once
	cache    int     // tokens of conversations that a replica keeps
	affinity affinity
}

// workload is what clients do: conversations begin in a Poisson process, and each client waits for
// the answer and a while before it asks again. closed > 0 lets so many clients talk without a pause.
type workload struct {
	rate     float64 // conversations a second
	closed   int
	warm     float64 // seconds whose requests do not count
	seconds  float64 // after which no conversation begins, and no request counts if warm > 0
	turns    int
	question float64 // tokens that a turn adds before the answer
	answer   int     // tokens
	think    float64 // seconds, mean
	seed     uint64
}

// talk is a conversation.
type talk struct {
	id    int
	at    float64   // when it begins
	think []float64 // before each turn but the first
}

// talks are the conversations of a load. The real run has the same.
func (l *workload) talks() (all []talk) {
	random := rand.New(rand.NewPCG(l.seed, 1))
	next := func(at float64) {
		t := talk{id: len(all), at: at}
		for range l.turns - 1 {
			t.think = append(t.think, random.ExpFloat64()*l.think)
		}
		all = append(all, t)
	}
	if l.closed > 0 {
		for range l.closed {
			next(0)
		}
		return all
	}
	for at := random.ExpFloat64() / l.rate; at < l.seconds; at += random.ExpFloat64() / l.rate {
		next(at)
	}
	return all
}

// result is what clients have seen.
type result struct {
	Requests   int     `json:"requests"`
	TPS        float64 `json:"tps"`
	First50    float64 `json:"first_token_p50_ms"`
	First95    float64 `json:"first_token_p95_ms"`
	Whole50    float64 `json:"answer_p50_ms"`
	Whole95    float64 `json:"answer_p95_ms"`
	Cached     float64 `json:"cached_share"` // of the prompts' tokens
	firsts     []float64
	wholes     []float64
	prompts    float64
	cached     float64
	tokens     float64
	begin, end float64
}

// seen adds a request.
func (r *result) seen(asked, first, end float64, prompt, cached, tokens float64) {
	if r.Requests == 0 {
		r.begin = asked
	}
	r.Requests++
	r.firsts, r.wholes = append(r.firsts, 1000*(first-asked)), append(r.wholes, 1000*(end-asked))
	r.prompts, r.cached, r.tokens = r.prompts+prompt, r.cached+cached, r.tokens+tokens
	r.begin, r.end = min(r.begin, asked), max(r.end, end)
}

// add takes in what other clients have seen at another time.
func (r *result) add(o result) {
	r.Requests += o.Requests
	r.firsts, r.wholes = append(r.firsts, o.firsts...), append(r.wholes, o.wholes...)
	r.prompts, r.cached, r.tokens = r.prompts+o.prompts, r.cached+o.cached, r.tokens+o.tokens
	r.end += o.end - o.begin
	r.finish()
}

// finish computes the figures.
func (r *result) finish() result {
	slices.Sort(r.firsts)
	slices.Sort(r.wholes)
	at := func(x []float64, q float64) float64 {
		if len(x) == 0 {
			return 0
		}
		return x[int(q*float64(len(x)-1)+0.5)]
	}
	r.First50, r.First95, r.Whole50, r.Whole95 = at(r.firsts, 0.5), at(r.firsts, 0.95), at(r.wholes, 0.5), at(r.wholes, 0.95)
	r.TPS, r.Cached = r.tokens/(r.end-r.begin), r.cached/max(r.prompts, 1)
	return *r
}

// request is a turn of a conversation at a replica.
type request struct {
	talk         *talk
	turn         int
	asked, first float64
	prompt       float64 // tokens
	cached       float64
	unread       float64 // tokens of the prompt
	reading      float64 // seconds for these, the first token included
	left         int     // tokens of the answer
}

// replica is one server.
type replica struct {
	host    int
	busy    bool
	running []*request
	waiting []*request
	kept    []entry // least recently used first
	keeps   float64 // tokens
}

// entry is a conversation in a cache.
type entry struct {
	talk   int
	tokens float64
}

// take removes a conversation from the cache and gives its tokens.
func (r *replica) take(talk int) float64 {
	i := slices.IndexFunc(r.kept, func(e entry) bool { return e.talk == talk })
	if i < 0 {
		return 0
	}
	n := r.kept[i].tokens
	r.kept = slices.Delete(r.kept, i, i+1)
	r.keeps -= n
	return n
}

// inPlace is the share of a kept conversation that a request has to use for the server to let it go on in its place.
const inPlace = 0.5

// gone is the talk of an entry that no request asks for any more.
const gone = -1

// keep adds a conversation; the least recently used ones make room.
func (r *replica) keep(talk int, tokens float64, most int) {
	r.kept = append(r.kept, entry{talk, tokens})
	for r.keeps += tokens; r.keeps > float64(most) && len(r.kept) > 0; {
		r.keeps -= r.kept[0].tokens
		r.kept = r.kept[1:]
	}
}

// event is something that happens: a client asks, or a replica's decode ends.
type event struct {
	at      float64
	order   int // of equal times
	request *request
	replica int // whose decode ends, if request is nil
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// ring is a consistent hash of conversations onto replicas.
type ring struct {
	points []uint64
	owner  map[uint64]int
}

// pointsEach is how many points a replica has on the ring; nginx has 160.
const pointsEach = 160

func newRing(replicas int) *ring {
	r := &ring{owner: map[uint64]int{}}
	for i := range replicas {
		for k := range pointsEach {
			p := hashOf(uint64(i)<<32 | uint64(k) | 1<<63)
			r.points, r.owner[p] = append(r.points, p), i
		}
	}
	slices.Sort(r.points)
	return r
}

func (r *ring) of(talk int) int {
	i, _ := slices.BinarySearch(r.points, hashOf(uint64(talk)))
	return r.owner[r.points[i%len(r.points)]]
}

// hashOf spreads a number over all 64 bits.
func hashOf(n uint64) uint64 {
	h := fnv.New64a()
	_ = binary.Write(h, binary.LittleEndian, n)
	x := h.Sum64() // whose last bytes hardly touch the first bits
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// reads says how long a request takes to its first token, and what of its prompt is read for that, given how many
// tokens of its conversation are in the cache: what was measured of such a turn. A turn whose conversation is in the
// cache no more takes what a first one does, and the rest of its prompt is read. Some turns find less in the cache
// than others, as an answer's text may have other tokens when it comes back.
func (c *costs) reads(q *request, kept, question float64) (seconds, unread float64) {
	n := len(c.firsts) / chatTurns
	at := int(hashOf(uint64(q.talk.id)<<8|uint64(q.turn))%uint64(n)) * chatTurns
	if q.turn > 0 && kept == 0 {
		return c.firsts[at] + (q.prompt-question)*(c.read+c.behind*(q.prompt+question)/2), q.prompt
	}
	at += min(q.turn, chatTurns-1)
	return c.firsts[at], min(c.unread[at], q.prompt)
}

// simulate lets a load run on a fleet. The same seed gives the same result.
func simulate(f fleet, l workload) result {
	random := rand.New(rand.NewPCG(l.seed, 2))
	replicas, active := make([]replica, f.replicas), make([]float64, (f.replicas+f.perHost-1)/f.perHost)
	for i := range replicas {
		replicas[i].host = i / f.perHost
	}
	hash := newRing(f.replicas)
	var queue events
	order := 0
	push := func(e event) {
		e.order = order
		order++
		heap.Push(&queue, e)
	}
	talks := l.talks()
	for i := range talks {
		push(event{at: talks[i].at, request: &request{talk: &talks[i]}})
	}
	next := len(talks) // ids of closed loops' later conversations
	var r result

	choose := func(t *talk) int {
		switch f.affinity {
		case drawn:
			return random.IntN(f.replicas)
		case least:
			best, from := 0, random.IntN(f.replicas)
			for k := range replicas {
				i := (from + k) % f.replicas
				if k == 0 || len(replicas[i].running)+len(replicas[i].waiting) < len(replicas[best].running)+len(replicas[best].waiting) {
					best = i
				}
			}
			return best
		}
		return hash.of(t.id)
	}
	// begin starts a replica's next decode: a token of each answer, and what is unread of prompts.
	begin := func(i int, now float64) {
		x := &replicas[i]
		for len(x.running) < f.seats && len(x.waiting) > 0 {
			q := x.waiting[0]
			x.waiting = x.waiting[1:]
			kept := x.take(q.talk.id)
			q.reading, q.unread = f.reads(q, kept, l.question)
			if q.cached = q.prompt - q.unread; q.cached < inPlace*kept {
				x.keep(gone, kept, f.cache) // the server takes the request for another conversation
			}
			x.running = append(x.running, q)
		}
		k := len(x.running)
		if k == 0 {
			x.busy = false
			return
		}
		x.busy = true
		rows, took := 0, 0.0
		for _, q := range x.running {
			if q.unread > 0 {
				took += q.reading
			} else {
				rows++
				took += f.behind * (q.prompt + float64(l.answer-q.left))
			}
		}
		took = (took + f.step[rows]) * cmp.Or(f.slowdown, 1)
		active[x.host] += f.cores[k]
		if over := active[x.host] / f.hostCPU; over > 1 {
			took *= over
		}
		push(event{at: now + took, replica: i})
	}
	for queue.Len() > 0 {
		e := heap.Pop(&queue).(event)
		if q := e.request; q != nil {
			q.asked, q.left = e.at, l.answer
			q.prompt = float64(q.turn+1)*l.question + float64(q.turn*l.answer)
			i := choose(q.talk)
			x := &replicas[i]
			x.waiting = append(x.waiting, q)
			if !x.busy {
				begin(i, e.at)
			}
			continue
		}
		x := &replicas[e.replica]
		active[x.host] -= f.cores[len(x.running)]
		for _, q := range slices.Clone(x.running) {
			if q.unread > 0 {
				q.unread, q.first = 0, e.at
			}
			if q.left--; q.left > 0 {
				continue
			}
			x.running = slices.DeleteFunc(x.running, func(o *request) bool { return o == q })
			x.keep(q.talk.id, q.prompt+float64(l.answer), f.cache)
			if l.warm == 0 || q.asked >= l.warm && q.asked < l.seconds {
				r.seen(q.asked, q.first, e.at, q.prompt, q.cached, float64(l.answer))
			}
			turn, t := q.turn+1, q.talk
			if l.closed > 0 {
				if e.at > l.seconds {
					continue
				}
				if turn == l.turns {
					turn, t = 0, &talk{id: next}
					next++
				}
				push(event{at: e.at, request: &request{talk: t, turn: turn}})
			} else if turn < l.turns {
				push(event{at: e.at + t.think[turn-1], request: &request{talk: t, turn: turn}})
			}
		}
		begin(e.replica, e.at)
	}
	return r.finish()
}

// row is what is used of a row of build/serve.json.
type row struct {
	Model   string    `json:"model"`
	Clients int       `json:"clients"`
	TPS     float64   `json:"tps"`
	Skip    string    `json:"skip"`
	Prompt  float64   `json:"prompt_tokens"`
	Answer  float64   `json:"answer_tokens"`
	CPU     float64   `json:"cpu_ms_per_token"`
	Read    float64   `json:"prompt_ms_per_token"`
	Behind  float64   `json:"behind_us_per_token"`
	Firsts  []float64 `json:"first_token_ms"`
	Unread  []float64 `json:"first_token_read"`
}

// costsOf derives what work takes from closed loops of 1 to seats clients in conversations: while k
// clients get an answer each, k prompts are read, which take what one takes alone, and decodes of k
// tokens follow. Between the numbers of clients that were measured, costs are on straight lines.
func costsOf(rows []row, model string, seats int) (costs, error) {
	c := costs{step: make([]float64, seats+1), cores: make([]float64, seats+1)}
	rows = slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.Model != model || r.Clients > seats })
	for _, r := range rows {
		c.read, c.behind = r.Read/1000, r.Behind/1e6
		if len(r.Unread) != len(r.Firsts) {
			return c, fmt.Errorf("the rows of %s are of an older bench-serve: run make bench-serve", model)
		}
		for _, ms := range r.Firsts {
			c.firsts = append(c.firsts, ms/1000)
		}
		c.unread = append(c.unread, r.Unread...)
	}
	first := stats.Mean(c.firsts)
	at, cpu := map[int]float64{}, map[int]float64{}
	for _, r := range rows {
		k, left := float64(r.Clients), r.Answer-1
		at[r.Clients] = max(k*(r.Answer/r.TPS-first)/left-k*c.behind*(r.Prompt+r.Answer/2), 0)
		cpu[r.Clients] = r.CPU / 1000 * r.TPS
	}
	if !(at[1] > 0 && at[seats] > 0) { // NaN is not: an older bench-serve noted no first tokens
		return c, fmt.Errorf("no rows of %s with 1 and %d clients: run make bench-serve", model, seats)
	}
	low := 1
	for k := 1; k <= seats; k++ {
		if at[k] > 0 {
			low = k
		}
		high := low
		for high < seats && (high == low || at[high] == 0) {
			high++
		}
		share := 0.0
		if high > low {
			share = float64(k-low) / float64(high-low)
		}
		c.step[k] = at[low] + share*(at[high]-at[low])
		c.cores[k] = cpu[low] + share*(cpu[high]-cpu[low])
	}
	return c, nil
}
