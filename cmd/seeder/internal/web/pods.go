package web

import (
	"seeder/cmd/seeder/internal/pods"
	"seeder/p2p/report"
)

// podsView is the pods of the cluster that wait for an image, where this host may ask.
type podsView struct {
	Rows []podRow
	More int
}

type podRow struct{ Pod, Node, Image, Reason, Why, Do string }

// maxPodRows bounds the pods that are named.
const maxPodRows = 20

func newPodsView(found pods.Found, rows []report.ImageState) podsView {
	var v podsView
	for _, w := range found.List[:min(len(found.List), maxPodRows)] {
		why, do := w.Advice(rows)
		v.Rows = append(v.Rows, podRow{
			Pod: cleanText(w.Namespace+"/"+w.Name, maxReference), Node: cleanName(w.Node), Image: cleanRef(w.Image),
			Reason: cleanText(w.Reason, maxName), Why: cleanText(why, maxReason), Do: cleanText(do, maxReason),
		})
	}
	v.More = len(found.List) - len(v.Rows)
	return v
}
