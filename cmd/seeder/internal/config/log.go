package config

import (
	"fmt"
	"io"
	"log/slog"
)

// NewLogger returns the daemon's logger; a nil w discards everything.
func NewLogger(w io.Writer, cfg Log) (*slog.Logger, *slog.LevelVar, error) {
	level := &slog.LevelVar{}
	if err := SetLevel(level, cfg.Level); err != nil {
		return nil, nil, err
	}
	if w == nil {
		w = io.Discard
	}
	opts := &slog.HandlerOptions{Level: level}
	switch cfg.Format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), level, nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), level, nil
	}
	return nil, nil, fmt.Errorf("log.format: %q: want text or json", cfg.Format)
}

// SetLevel changes the level of a logger to debug, info, warn or error.
func SetLevel(level *slog.LevelVar, name string) error {
	switch name {
	case "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("log.level: %q: want debug, info, warn or error", name)
	}
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	return nil
}
