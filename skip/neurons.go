package skip

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// neuronWord is the word that says what is left out of feed-forwards: the share in its lower
// half, the number of the choice in its upper half.
const neuronWord = windowWord + 1

// NeuronUnits is how many units of [Mask.Neurons] all of a feed-forward's neurons are.
const NeuronUnits = 1000

// MaxNeurons is the largest share of neurons that a mask may leave out.
const MaxNeurons = 900

// Neurons is the share of each feed-forward's neurons that the mask leaves out, in
// thousandths; 0 = none. Which ones these are is not in the mask: they are chosen by prompt.
func (m Mask) Neurons() int { return int(uint32(m[neuronWord])) }

// NeuronChoice is the number of the choice of neurons, where there are several at a time
// (llama's Context.SetNeurons). It is not a part of the mask's text.
func (m Mask) NeuronChoice() int { return int(m[neuronWord] >> 32) }

// WithNeurons returns the mask that leaves out this share of neurons, in thousandths, by the
// choice of a number. Without a share there is no choice either.
func (m Mask) WithNeurons(share, choice int) Mask {
	m[neuronWord] = uint64(uint32(share))
	if share != 0 {
		m[neuronWord] |= uint64(choice) << 32
	}
	return m
}

// SameNeurons tells whether both masks leave out the same neurons: none, or by the same choice.
func (m Mask) SameNeurons(other Mask) bool { return m[neuronWord] == other[neuronWord] }

// mergeNeurons is what [Mask.Union] makes of two masks' neurons: the larger share.
func (m Mask) mergeNeurons(other Mask) uint64 {
	if other.Neurons() > m.Neurons() {
		return other[neuronWord]
	}
	return m[neuronWord]
}

// commonNeurons is what [Mask.Intersection] makes of two masks' neurons. Of two choices
// nobody knows what they have in common.
func (m Mask) commonNeurons(other Mask) uint64 {
	if m[neuronWord] != other[neuronWord] {
		return 0
	}
	return m[neuronWord]
}

// neuronText is the share as in "n20%" and "n12.5%"; "" = none.
func (m Mask) neuronText() string {
	if m.Neurons() == 0 {
		return ""
	}
	return "n" + strconv.FormatFloat(float64(m.Neurons())*100/NeuronUnits, 'f', -1, 64) + "%"
}

// parseNeurons reads what stands behind the n of a share.
func parseNeurons(text string) (int, error) {
	number, isShare := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	share := math.Round(percent * NeuronUnits / 100)
	if !isShare || err != nil || strings.Trim(number, "0123456789.") != "" || !(share >= 1 && share <= MaxNeurons) ||
		math.Abs(share-percent*NeuronUnits/100) > 1e-9 {
		return 0, fmt.Errorf("a share of neurons is 0.1%% to %d%%, in steps of 0.1%%, as in n20%%", MaxNeurons*100/NeuronUnits)
	}
	return int(share), nil
}
