package calibrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// Shard is a process's place among those that share a calibration. They have the same
// model, data, settings and folder. Each adds what it computes to a log of its own there and
// reads those of the others; nothing else connects them. Who computes what follows from the data
// alone, so that a shard that died is started again and goes on.
//
// Answers and losses under candidates go by pieces of the data. A search belongs to one
// shard, or, where there are enough shards, to several: then each round's units are divided
// among these, and measured on all examples, where a search alone would let them race.
type Shard struct {
	Number int  // from 0; [Merge] = the one that makes the profile of what the others computed
	Of     int  // how many there are; 0 with [Merge] = as the folder tells
	Wait   bool // for the others, instead of ending with [MissingError]
}

// Merge is the [Shard].Number of the process that makes the profile.
const Merge = -1

func (s *Shard) merges() bool { return s.Number == Merge }

// ErrShard is returned when a folder has logs of another division into shards, or none to merge,
// or when options do not go with shards.
var ErrShard = errors.New("cannot calibrate in shards")

// MissingError is returned when a shard has computed its share as far as it could, and goes on when
// others have computed theirs.
type MissingError struct {
	Shards []int // that have to be started, or are at work; ascending
	Of     int
}

func (e *MissingError) Error() string {
	word := "shard "
	if len(e.Shards) > 1 {
		word = "shards "
	}
	return fmt.Sprintf("losses are missing that %s%s of %d computes: start it, and then this again", word, e.List(), e.Of)
}

// List is the numbers of the shards, as in 0,2,5.
func (e *MissingError) List() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(e.Shards), " ", ","), "[]")
}

// errMissing ends a search whose next losses other shards compute.
var errMissing = errors.New("another shard has not computed that yet")

// leastSplit is how many shards a search is divided among at least. A search that is not
// divided takes a third of the losses, and waits for nobody.
const leastSplit = 4

// pollEvery is how often a shard that waits reads the others' logs.
const pollEvery = time.Second

// shardLog is the name of a shard's log, mergeLog that of what merging computes.
const (
	shardLog = "shard-%d-of-%d.log"
	mergeLog = "merge.log"
)

// count finds out of how many shards a folder has logs; 0 = there are none.
func (r *run) count() (n int, err error) {
	names, err := filepath.Glob(filepath.Join(r.Folder, "shard-*-of-*.log"))
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		var number, of int
		if _, err := fmt.Sscanf(filepath.Base(name), shardLog, &number, &of); err != nil {
			continue
		}
		if want := cmp.Or(r.Shard.Of, n); want != 0 && of != want {
			return 0, fmt.Errorf("%w: %s has logs of %d shards and not of %d; name another folder, or remove the logs", ErrShard, r.Folder, of, want)
		}
		n = of
	}
	return n, nil
}

// wait is a moment before the others' logs are looked at again.
func (r *run) wait(ctx context.Context, why string) error {
	r.Progress(why, 0, 1)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollEvery):
		return nil
	}
}

// openShards opens the log of this shard and reads the others'.
func (r *run) openShards(ctx context.Context) error {
	if r.Budget > 0 || r.Time > 0 || r.Pause != nil {
		return fmt.Errorf("%w with a limit of time: what is found then depends on the machine", ErrShard)
	}
	r.Threads = cmp.Or(r.Threads, r.model.DefaultThreads()) // in the key: the machines must agree on it
	shard := *r.Shard
	r.Shard = &shard
	for {
		n, err := r.count()
		if err != nil {
			return err
		}
		if shard.Of = cmp.Or(shard.Of, n); shard.Of > 0 {
			break
		}
		if !shard.merges() || !shard.Wait {
			return fmt.Errorf("%w: %s has no shard's log; start the shards first", ErrShard, r.Folder)
		}
		if err := r.wait(ctx, "waiting for a shard"); err != nil {
			return err
		}
	}
	if r.Shard.Number < Merge || r.Shard.Number >= r.Shard.Of {
		return fmt.Errorf("%w: shard %d of %d, want 0 to %d", ErrShard, r.Shard.Number, r.Shard.Of, r.Shard.Of-1)
	}
	for _, name := range r.allLogs() { // before this one makes its own
		if err := search.CheckLog(filepath.Join(r.Folder, name), r.shardKey()); err != nil {
			return err
		}
	}
	var err error
	if r.log, err = search.OpenLog(filepath.Join(r.Folder, r.shardLog()), r.shardKey()); err != nil {
		return err
	}
	if _, err := r.join(); err != nil {
		return errors.Join(err, r.log.Close())
	}
	return nil
}

func (r *run) shardLog() string {
	if r.Shard.merges() {
		return mergeLog
	}
	return fmt.Sprintf(shardLog, r.Shard.Number, r.Shard.Of)
}

// shardKey names also what the shares depend on.
func (r *run) shardKey() string {
	return fmt.Sprintf("%s, units %s, depths %v, preset of %d, by llama.cpp %s", r.key(), r.Unit, r.Depths, len(r.Preset), llama.Version())
}

// allLogs lists the logs of all shards, whether they are there or not.
func (r *run) allLogs() []string {
	logs := []string{mergeLog}
	for i := range r.Shard.Of {
		logs = append(logs, fmt.Sprintf(shardLog, i, r.Shard.Of))
	}
	return logs
}

// join reads what the others have written, and tells whether there was anything new.
func (r *run) join() (news bool, err error) {
	for _, name := range r.allLogs() {
		if name == r.shardLog() {
			continue
		}
		n, err := r.log.Join(filepath.Join(r.Folder, name))
		if err != nil {
			return false, err
		}
		news = news || n > 0
	}
	return news, nil
}

// shared does stage, again and again, until nothing is missing: what this shard computes is
// computed at once, and what others do is waited for. stage can be done any number of times.
func (r *run) shared(ctx context.Context, stage func(context.Context) error) error {
	r.sharing = true
	defer func() { r.sharing = false }()
	for {
		r.missing, r.did = map[int]bool{}, false
		if err := stage(ctx); err != nil && !errors.Is(err, errMissing) {
			return err
		}
		if len(r.missing) == 0 {
			return nil
		}
		news, err := r.join()
		if err != nil {
			return err
		}
		if r.did && news {
			continue
		}
		why := &MissingError{Of: r.Shard.Of}
		for i := range r.Shard.Of {
			if r.missing[i] {
				why.Shards = append(why.Shards, i)
			}
		}
		if !r.Shard.Wait {
			return why
		}
		for ; !news; news, err = r.join() {
			if err != nil {
				return err
			}
			if err := r.wait(ctx, "waiting for shards "+why.List()); err != nil {
				return err
			}
		}
	}
}

// share has the losses computed that everything after it asks for.
func (r *run) share(ctx context.Context) error {
	stages := []func(context.Context) error{r.searches, r.searchAll, r.contest, r.searchTasksShared, r.measure, r.measureDraftsShared}
	if r.Preset != nil {
		stages = []func(context.Context) error{r.searchAll, r.measure}
	}
	return r.shared(ctx, func(ctx context.Context) error {
		for _, stage := range stages {
			if err := stage(ctx); err != nil {
				return err
			}
			if len(r.missing) > 0 {
				return errMissing
			}
		}
		return nil
	})
}

// range of shards from first to before end.
type shards struct{ first, end int }

// part is the range of the shards that part k of n belongs to.
func (r *run) part(k, n int) shards {
	first := k * r.Shard.Of / n
	return shards{first, max(first+1, (k+1)*r.Shard.Of/n)}
}

// chunkOwner picks the shard for each mask of the chunk of cases from one on.
func (r *run) chunkOwner(from int) func(skip.Mask) int {
	if !r.sharing {
		return nil
	}
	if r.chunks == nil {
		for at := 0; at < len(r.cases); at = r.chunkFrom(at) {
			r.chunks = append(r.chunks, at)
		}
	}
	s := r.part(slices.Index(r.chunks, from), len(r.chunks))
	return func(mask skip.Mask) int {
		return s.first + int(crc32.ChecksumIEEE([]byte(mask.String()))%uint32(s.end-s.first))
	}
}

// theirs tells whether what is not in the log is for one of the other shards, and notes that it
// is missing.
func (r *run) theirs(owner int) bool {
	if !r.sharing || owner == r.Shard.Number {
		r.did = true
		return false
	}
	r.missing[owner] = true
	return true
}

// wrap gives losses that the log answers where it can; others are computed by their owner. Where
// that is another shard, the error is errMissing, or, with placeholders, each loss is NaN.
func (r *run) wrap(name string, losses search.Losses, owner func(skip.Mask) int, placeholders bool) search.Losses {
	kept := r.log.Wrap(name, losses)
	if !r.sharing {
		return kept
	}
	return func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error) {
		switch {
		case r.log.Known(name, mask, examples) || !r.theirs(owner(mask)):
			return kept(ctx, mask, examples)
		case placeholders:
			return slices.Repeat([]float64{math.NaN()}, len(examples)), nil
		}
		return nil, errMissing
	}
}

// searches does every search at once, as far as this shard can.
func (r *run) searches(ctx context.Context) error {
	for _, s := range r.allSearches() {
		if _, err := r.find(ctx, s, 0); err != nil && !errors.Is(err, errMissing) {
			return err
		}
	}
	return nil
}

// allSearches are those of a calibration without a limit of time.
func (r *run) allSearches() []pursuit {
	all := []pursuit{r.forAll()}
	for _, task := range r.tasks {
		all = append(all, r.forTask(task)...)
	}
	return append(all, r.forDrafts())
}

// ownersOf gives the shards that do a search: one, or enough to divide each round among.
func (r *run) ownersOf(name string) shards {
	if r.owners == nil {
		r.owners = r.divide(r.allSearches())
	}
	return r.owners[name]
}

// divide gives each search its shards: large ones as many as are their share of the work, if
// these are enough to divide it, and others, the largest first, the one that has least to do.
func (r *run) divide(all []pursuit) map[string]shards {
	work, sum := map[string]float64{}, 0.0
	for _, s := range all {
		taken, depth := 0.0, 0.0
		for _, u := range s.units {
			depth += u.Depth / float64(len(s.units))
		}
		for left := s.depth; left > depth/2 && taken < float64(len(s.units)); left -= depth {
			work[s.name] += (float64(len(s.units)) - taken) * float64(len(s.cases))
			taken++
		}
		sum += work[s.name]
	}
	owners, load, next := map[string]shards{}, make([]float64, r.Shard.Of), 0
	for _, s := range all {
		n := int(float64(r.Shard.Of) * work[s.name] / sum)
		if n < leastSplit || r.Prefill != skip.FullPrefill || !r.scorer.Fit(s.cases) { // else losses depend in their last digits on what is asked together
			continue
		}
		owners[s.name] = shards{next, next + n}
		for i := next; i < next+n; i++ {
			load[i] += work[s.name] / float64(n)
		}
		next += n
	}
	byWork := slices.Clone(all)
	slices.SortStableFunc(byWork, func(a, b pursuit) int { return cmp.Compare(work[b.name], work[a.name]) })
	for _, s := range byWork {
		if _, ok := owners[s.name]; ok {
			continue
		}
		least := slices.Index(load, slices.Min(load))
		owners[s.name] = shards{least, least + 1}
		load[least] += work[s.name] / 3 // units race
	}
	return owners
}

// dividing makes the options of a search that several shards do: before each round all its units'
// losses are computed, by each shard a part.
func (r *run) dividing(s pursuit, o *search.Options) (owner func(skip.Mask) int) {
	at := r.ownersOf(s.name)
	of := map[skip.Mask]int{}
	owner = func(mask skip.Mask) int {
		if at, ok := of[mask]; ok {
			return at
		}
		return at.first
	}
	if at.end-at.first < 2 {
		return owner
	}
	o.Round = func(ctx context.Context, masks []skip.Mask) error {
		clear(of)
		for i, mask := range masks {
			of[mask] = at.first + i*(at.end-at.first)/len(masks)
		}
		losses, all := r.lossesOf(s, owner), search.All(len(s.cases))
		waits := error(nil)
		for _, mask := range masks {
			if _, err := losses(ctx, mask, all); errors.Is(err, errMissing) {
				waits = err
			} else if err != nil {
				return err
			}
		}
		return waits
	}
	return owner
}

// searchTasksShared finds each task's sets as far as the losses are known.
func (r *run) searchTasksShared(ctx context.Context) error {
	_, err := r.searchTasks(ctx)
	return err
}

// measureDraftsShared measures drafts after what comes before them.
func (r *run) measureDraftsShared(ctx context.Context) error {
	r.keepBetter()
	p := &router.Profile{}
	if err := r.findDrafts(ctx, p); err != nil {
		return err
	}
	_, err := r.measureDrafts(ctx, p)
	return err
}

// tokensName is the name in the log of how the tokens of a case score.
func tokensName(n int) string { return fmt.Sprint("tokens of ", n) }

// keepTokens adds how a sampled case's tokens score to the log, for the process that merges.
func (r *run) keepTokens(n int, mask skip.Mask) error {
	var values []float64
	for _, t := range r.tokens[scored{n, mask}] {
		values = append(values, t.LogP, t.Top, t.KL)
	}
	if len(values) == 0 {
		return nil
	}
	return r.log.Keep(tokensName(n), mask, values)
}

// keptTokens is what keepTokens kept; nil = nothing.
func (r *run) keptTokens(n int, mask skip.Mask) (tokens []score.TokenScore) {
	if r.Shard == nil {
		return nil
	}
	values := r.log.Kept(tokensName(n), mask)
	for i := 0; i+2 < len(values); i += 3 {
		tokens = append(tokens, score.TokenScore{LogP: values[i], Top: values[i+1], KL: values[i+2]})
	}
	return tokens
}
