package control

import "net/http"

// receiveBuffer is how many bytes of a request's body are under way at most: 8 MiB fill a
// link of 500 Mbit/s over 130 ms.
const receiveBuffer = 8 << 20

// protocols are HTTP/1.1, where http1 is set, and HTTP/2 without TLS: a client that has one
// connection, through ssh, asks several things over it at once.
func protocols(http1 bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(http1)
	p.SetUnencryptedHTTP2(true)
	return p
}
