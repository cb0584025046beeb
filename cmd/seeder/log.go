package main

import (
	"fmt"
	"io"
	"log/slog"
)

// newLogger returns the daemon's logger; a nil w discards everything.
func newLogger(w io.Writer, cfg LogConfig) (*slog.Logger, error) {
	var level slog.Level
	switch cfg.Level {
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
			return nil, fmt.Errorf("log.level: %w", err)
		}
	default:
		return nil, fmt.Errorf("log.level: %q: want debug, info, warn or error", cfg.Level)
	}
	if w == nil {
		w = io.Discard
	}
	opts := &slog.HandlerOptions{Level: level}
	switch cfg.Format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log.format: %q: want text or json", cfg.Format)
}
