package report

import (
	"fmt"
	"io"
	"strings"
)

// The characters of a layer's halves, as gallop inspect draws them.
const (
	attentionChar   = "█"
	feedForwardChar = "░"
	skippedChar     = "·"
)

// Map draws which halves of which layers run: two characters for each layer,
// attention first, a dot for what is skipped. skippedAttention and
// skippedFeedForward are (nLayer,) each; the error wraps [ErrShape] when they
// are not. Layers stand apart if the line fits into width columns (0: 80) so;
// a model with more layers than a line holds takes several.
func Map(w io.Writer, skippedAttention, skippedFeedForward []bool, width int) error {
	if len(skippedAttention) != len(skippedFeedForward) {
		return fmt.Errorf("%w: a map of %d attention and %d feed-forward halves", ErrShape, len(skippedAttention), len(skippedFeedForward))
	}
	_, err := io.WriteString(w, layerMap(skippedAttention, skippedFeedForward, drawingWidth(width), colorful(w)))
	return err
}

func layerMap(skippedAttention, skippedFeedForward []bool, width int, color bool) string {
	half := func(skipped bool, char, code string) string {
		if skipped {
			return skippedChar
		}
		return paint(char, code, color)
	}
	layers := make([]string, len(skippedAttention))
	for i := range layers {
		layers[i] = half(skippedAttention[i], attentionChar, attentionColor) + half(skippedFeedForward[i], feedForwardChar, feedForwardColor)
	}
	if len(layers) == 0 {
		return ""
	}
	const layerWidth = 2 // columns
	if len(layers)*(layerWidth+1)-1 <= width {
		return strings.Join(layers, " ") + "\n"
	}
	var b strings.Builder
	for from, perLine := 0, width/layerWidth; from < len(layers); from += perLine {
		b.WriteString(strings.Join(layers[from:min(from+perLine, len(layers))], "") + "\n")
	}
	return b.String()
}

// MapLegend says what the characters of [Map] mean, in one line.
func MapLegend(w io.Writer) error {
	color := colorful(w)
	_, err := fmt.Fprintf(w, "%s attention  %s feed-forward  %s skipped\n", paint(attentionChar, attentionColor, color),
		paint(feedForwardChar, feedForwardColor, color), skippedChar)
	return err
}
