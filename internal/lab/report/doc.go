// Package report shows results: as JSON for programs, as tables for documents,
// as pictures for people, in the terminal and in files.
//
// # Basics
//
// A [Row] is what one way to run a model came to. [WriteJSON] writes rows to a
// file, and [Results] turns them into the cells of a table, grouped by depth,
// the best of each group marked. [Table] and [Markdown] write any table.
//
// [Bars], [Heat] and [Map] draw in the terminal: one bar for each candidate; how
// much each task needs each sublayer; which halves of which layers run. Attention
// is █ and feed-forward is ░, as in gallop inspect. [Width] is how wide to draw.
//
// [CurvePNG] and [HeatPNG] write pictures, at twice the usual resolution and in
// colours that colour-blind readers tell apart; lines also differ in their points.
// [CurveSVG] gives such a picture as text.
//
// # Caveats
//
// Terminal pictures are coloured only when they go to a terminal and NO_COLOR is
// unset. They say the same without colours.
//
// A figure that is NaN was not measured. It is left out of JSON, written as "–"
// in tables and bars, and drawn grey, or not at all, in pictures.
//
// Names may come from files: characters that would move the cursor or colour
// the screen are replaced in everything that this package writes for the terminal.
package report
