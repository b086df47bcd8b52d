package report_test

import (
	"os"

	"github.com/gallop-llm/gallop/internal/lab/report"
)

func ExampleResults() {
	columns, cells := report.Results([]report.Row{
		{Method: "best single set", Depth: report.Figure(3), Accuracy: report.Figure(0.76), Loss: report.Figure(0.9)},
		{Method: "routed", Depth: report.Figure(3), Accuracy: report.Figure(0.88), Loss: report.Figure(0.4)},
	})
	report.Markdown(os.Stdout, columns, cells)
	// Output:
	// | depth | method          | accuracy % |      loss |
	// | ----: | --------------- | ---------: | --------: |
	// |     3 | best single set |       76.0 |     0.900 |
	// |     3 | routed          |   **88.0** | **0.400** |
}

func ExampleBars() {
	report.Bars(os.Stdout, []report.Bar{
		{Label: "none", Value: 0.02},
		{Label: "f3,f7", Value: 0.05, Note: "2 sublayers", Chosen: true},
		{Label: "4,6,9", Value: 0.4, Note: "3 layers"},
	}, 48)
	// Output:
	//   none   █                     0.02
	// → f3,f7  ██▌                   0.05  2 sublayers
	//   4,6,9  ████████████████████   0.4  3 layers
}

func ExampleMap() {
	report.Map(os.Stdout, []bool{false, true, false, true}, []bool{false, true, true, false}, 80)
	report.MapLegend(os.Stdout)
	// Output:
	// █░ ·· █· ·░
	// █ attention  ░ feed-forward  · skipped
}
