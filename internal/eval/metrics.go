package eval

import (
	"math"
	"math/rand/v2"
	"slices"
)

// resamples is how many means a bootstrap interval is read from: enough that its
// ends, the 50th from either side, move little.
const resamples = 2000

// confidence is the share of the means that a bootstrap interval holds.
const confidence = 0.95

// Choice is the answer with the highest log-likelihood, the first of equals.
func (s *Score) Choice() int { return likeliest(s.LogLik, nil) }

// ChoiceNorm is the answer with the highest log-likelihood per byte of its text
// (len(LogLik),), the first of equals.
func (s *Score) ChoiceNorm(bytes []int) int { return likeliest(s.LogLik, bytes) }

func likeliest(logLik []float64, bytes []int) int {
	best, most := 0, math.Inf(-1)
	for i, l := range logLik {
		if bytes != nil {
			l /= float64(max(bytes[i], 1))
		}
		if l > most {
			best, most = i, l
		}
	}
	return best
}

// Accuracy is the share of the cases with several answers at which the right one
// wins: acc by the sum of the log-likelihoods, norm by the sum per byte of the
// answer's text. These are lm-evaluation-harness's acc and acc_norm, which counts
// characters: the same for ASCII. acc is NaN where no case has several answers,
// and norm also where one of these has no AnswerBytes.
func Accuracy(scores []Score, cases []Case) (acc, norm float64) {
	var won, wonNorm, n float64
	for i := range scores {
		s, c := &scores[i], &cases[i]
		if len(c.Answers) < 2 {
			continue
		}
		n++
		if s.Choice() == c.Right {
			won++
		}
		if len(c.AnswerBytes) != len(c.Answers) {
			wonNorm = math.NaN()
		} else if s.ChoiceNorm(c.AnswerBytes) == c.Right {
			wonNorm++
		}
	}
	return won / n, wonNorm / n
}

// Perplexity is e to the mean loss of the tokens of all plain texts together, each
// text's tokens but the first predicted from those before. It is NaN without any.
func Perplexity(scores []Score, cases []Case) float64 {
	loss, tokens := 0.0, 0
	for i, c := range cases {
		if c.Text {
			loss -= scores[i].LogLik[0]
			tokens += len(c.Answers[0])
		}
	}
	return math.Exp(loss / float64(tokens))
}

// Mean is the mean of values, NaN without any.
func Mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// Bootstrap is the 95 % confidence interval of the mean of values by the
// percentile bootstrap (Efron 1979) of 2000 resamples. The same values and seed
// give the same interval; without values it is NaN.
func Bootstrap(values []float64, seed uint64) (lo, hi float64) {
	if len(values) == 0 {
		return math.NaN(), math.NaN()
	}
	random := rand.New(rand.NewPCG(seed, 0))
	means := make([]float64, resamples)
	for i := range means {
		sum := 0.0
		for range values {
			sum += values[random.IntN(len(values))]
		}
		means[i] = sum / float64(len(values))
	}
	slices.Sort(means)
	outside := int(math.Round((1 - confidence) / 2 * resamples)) // on either side
	return means[outside], means[resamples-1-outside]
}

// BootstrapPaired is the mean of a-b, measured on the same cases, and its 95 %
// confidence interval as by [Bootstrap]. a and b must be of one length.
func BootstrapPaired(a, b []float64, seed uint64) (mean, lo, hi float64) {
	differences := make([]float64, len(a))
	for i := range a {
		differences[i] = a[i] - b[i]
	}
	lo, hi = Bootstrap(differences, seed)
	return Mean(differences), lo, hi
}
