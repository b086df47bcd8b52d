package llama

/*
#include "glue.h"
*/
import "C"

import (
	"context"
	"log/slog"
	"strings"
	"sync"
)

var logger struct {
	sync.Mutex
	*slog.Logger
	line  strings.Builder // llama.cpp logs pieces of lines
	level slog.Level
}

// SetLogger sends llama.cpp's log to l; nil drops it, which is the default.
// Its errors also come back as Go errors from the call that failed.
func SetLogger(l *slog.Logger) {
	logger.Lock()
	defer logger.Unlock()
	logger.Logger = l
}

//export gallopLog
func gallopLog(level C.int, text *C.char) {
	logger.Lock()
	defer logger.Unlock()
	if logger.Logger == nil {
		return
	}
	switch level {
	case C.GGML_LOG_DEBUG, C.GGML_LOG_NONE:
		logger.level = slog.LevelDebug
	case C.GGML_LOG_INFO: // llama.cpp describes every tensor at this level
		logger.level = slog.LevelInfo
	case C.GGML_LOG_WARN:
		logger.level = slog.LevelWarn
	case C.GGML_LOG_ERROR:
		logger.level = slog.LevelError
	}
	logger.line.WriteString(C.GoString(text))
	line, complete := strings.CutSuffix(logger.line.String(), "\n")
	if !complete {
		return
	}
	logger.line.Reset()
	if line = strings.TrimSpace(line); line != "" {
		logger.Log(context.Background(), logger.level, line, "from", "llama.cpp")
	}
}
