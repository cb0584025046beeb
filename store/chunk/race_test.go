//go:build race

package chunk

const raceDetector = true
