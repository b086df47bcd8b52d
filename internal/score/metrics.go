package score

import "math"

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
