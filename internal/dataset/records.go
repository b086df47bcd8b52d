package dataset

import (
	"bufio"
	"bytes"
	"io"
)

// maxRecord is the longest line, or array element, that is read, in bytes. Far
// above any prompt that a model can take, far below a machine's memory: a file
// without line ends must not be taken in whole.
const maxRecord = 16 << 20

const tooLong = fault("longer than 16 MiB: one example a line is expected")

// bom may begin a text file, and means nothing.
const bom = "\ufeff"

// records cuts a file into the texts of its objects.
type records struct {
	r     *bufio.Reader
	buf   []byte // the current record
	line  int    // of the next byte, from 1
	state state
}

type state int

const (
	atStart    state = iota
	inLines          // JSONL
	inArray          // after '[' or ','
	afterArray       // after ']'
	atEnd
)

func newRecords(file io.Reader) *records {
	return &records{r: bufio.NewReader(file), line: 1}
}

// next gives a record, which holds until the next call, and its line. At the
// end of the file the error is io.EOF. A record that is too long or broken is
// a [fault]; going on is possible then.
func (r *records) next() ([]byte, int, error) {
	if r.state == atStart {
		if err := r.start(); err != nil {
			return nil, r.line, err
		}
	}
	switch r.state {
	case inLines:
		return r.nextLine()
	case inArray:
		return r.nextElement()
	case afterArray:
		return nil, r.line, r.end()
	default:
		return nil, r.line, io.EOF
	}
}

// start finds out whether the file is an array.
func (r *records) start() error {
	if head, _ := r.r.Peek(len(bom)); string(head) == bom {
		if _, err := r.r.Discard(len(bom)); err != nil {
			return err
		}
	}
	c, err := r.skipSpace()
	if err != nil {
		return err
	}
	if c == '[' {
		r.state = inArray
		return nil
	}
	r.state = inLines
	return r.r.UnreadByte()
}

// skipSpace gives the first byte that is not white space.
func (r *records) skipSpace() (byte, error) {
	for {
		c, err := r.r.ReadByte()
		if err != nil {
			return 0, err
		}
		switch c {
		case '\n':
			r.line++
		case ' ', '\t', '\r':
		default:
			return c, nil
		}
	}
}

// nextLine gives the next line that is not blank.
func (r *records) nextLine() ([]byte, int, error) {
	for {
		r.buf = r.buf[:0]
		var err error
		var read, long = false, false
		for {
			var part []byte
			part, err = r.r.ReadSlice('\n')
			read = read || len(part) > 0
			if long = long || len(r.buf)+len(part) > maxRecord; !long {
				r.buf = append(r.buf, part...)
			}
			if err != bufio.ErrBufferFull {
				break
			}
		}
		if err != nil && (err != io.EOF || !read) {
			return nil, r.line, err
		}
		line := r.line
		r.line++
		if long {
			return nil, line, tooLong
		}
		if len(bytes.TrimSpace(r.buf)) > 0 {
			return r.buf, line, nil
		}
	}
}

// nextElement gives the next element of the array. It only looks for where the
// element ends; whether that is JSON is for its reader to say.
func (r *records) nextElement() ([]byte, int, error) {
	c, err := r.skipSpace()
	line := r.line
	if err != nil {
		return nil, line, r.cut(err)
	}
	if c == ']' {
		return nil, line, r.end()
	}
	r.buf = r.buf[:0]
	var depth, length int
	var quoted, escaped bool
	for {
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped = c == '\\'
			quoted = c != '"'
		case c == '"':
			quoted = true
		case c == '{' || c == '[':
			depth++
		case depth == 0 && c == ',':
			return r.element(line, length)
		case depth == 0 && c == ']':
			r.state = afterArray
			return r.element(line, length)
		case depth > 0 && (c == '}' || c == ']'):
			depth--
		}
		if length++; length <= maxRecord {
			r.buf = append(r.buf, c)
		}
		if c == '\n' {
			r.line++
		}
		if c, err = r.r.ReadByte(); err != nil {
			return nil, line, r.cut(err)
		}
	}
}

func (r *records) element(line, length int) ([]byte, int, error) {
	if length > maxRecord {
		return nil, line, tooLong
	}
	if length == 0 {
		return nil, line, fault("broken JSON: nothing before the comma")
	}
	return r.buf, line, nil
}

// end checks that nothing follows the array: io.EOF then.
func (r *records) end() error {
	r.state = atEnd
	if _, err := r.skipSpace(); err != nil {
		return err
	}
	return fault("broken JSON: text after the end of the array")
}

// cut turns the file's end inside the array into a fault.
func (r *records) cut(err error) error {
	if err != io.EOF {
		return err
	}
	r.state = atEnd
	return fault("broken JSON: the array is cut short")
}
