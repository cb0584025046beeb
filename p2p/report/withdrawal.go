package report

// Withdrawal says what happens to an image that nobody seeds any more.
type Withdrawal struct {
	Purge bool // every node removes it
	Force bool // also where a container uses it; else once none uses it
}
