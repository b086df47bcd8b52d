package dataset

import (
	"errors"
	"fmt"
)

var (
	// ErrData is returned when a line cannot be used. The error is a [Problem].
	ErrData = errors.New("unusable data")

	// ErrEmpty is returned when not one example is left: no files were given,
	// or every line was skipped.
	ErrEmpty = errors.New("no examples")
)

// Problem says why a line cannot be used. As an error it reads
// "calibration.jsonl:17: prompt is empty" and is an [ErrData].
type Problem struct {
	File   string // as given to Read
	Line   int    // from 1; where the object begins, if it has several lines
	Reason string
}

// Error gives file, line and reason.
func (p Problem) Error() string { return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Reason) }

// Unwrap gives [ErrData].
func (p Problem) Unwrap() error { return ErrData }

// fault is the reason of a [Problem] while its place is still unknown. Other
// errors are those of reading files.
type fault string

func (f fault) Error() string { return string(f) }

func faultf(format string, args ...any) fault { return fault(fmt.Sprintf(format, args...)) }
