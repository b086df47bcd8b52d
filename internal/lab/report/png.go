package report

import (
	"bytes"
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/gallop-llm/gallop/internal/files"
)

// Sizes of pictures, in points of 1/72 inch.
const (
	titleSize = 13
	labelSize = 11
	tickSize  = 10
	margin    = 10 // around everything
	space     = 8  // between parts

	// dpi is twice what screens count with, so that pictures stay sharp on
	// dense screens and in print.
	dpi = 2 * vgimg.DefaultDPI
)

// palette is Okabe and Ito's, the colours of which colour-blind readers tell
// apart, without its yellow, which is too light on white.
var palette = []color.RGBA{
	{0x00, 0x72, 0xb2, 0xff}, // blue
	{0xd5, 0x5e, 0x00, 0xff}, // vermilion
	{0x00, 0x9e, 0x73, 0xff}, // green
	{0xcc, 0x79, 0xa7, 0xff}, // purple
	{0xe6, 0x9f, 0x00, 0xff}, // orange
	{0x56, 0xb4, 0xe9, 0xff}, // sky blue
	{0x00, 0x00, 0x00, 0xff}, // black
}

var (
	inkColor  = color.RGBA{0x22, 0x22, 0x22, 0xff} // text and axes
	gridColor = color.RGBA{0xe4, 0xe4, 0xe4, 0xff}
	noColor   = color.RGBA{0xc8, 0xc8, 0xc8, 0xff} // not measured
)

// textStyle is for text of a size in points, its anchor at the left of its bottom.
func textStyle(size vg.Length) text.Style {
	return text.Style{Color: inkColor, Font: font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, size), Handler: plot.DefaultTextHandler}
}

// fit cuts text to a width on the picture.
func fit(style text.Style, words string, width vg.Length) string {
	words = clean(words)
	for columns := textWidth(words) - 1; columns > 0 && style.Width(words) > width; columns-- {
		words = cut(words, columns)
	}
	return words
}

// writePNG writes a picture of width and height points that paint draws.
func writePNG(path string, width, height vg.Length, paint func(draw.Canvas)) error {
	image := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))}
	paint(draw.New(image))
	var data bytes.Buffer
	_, err := image.WriteTo(&data)
	if err == nil {
		err = files.Write(path, data.Bytes())
	}
	if err != nil {
		return fmt.Errorf("cannot write the picture: %w", err)
	}
	return nil
}
