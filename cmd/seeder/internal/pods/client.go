package pods

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"seeder/cmd/seeder/internal/cli"
)

const (
	// maxConfigBytes bounds a kubeconfig and each file that it names.
	maxConfigBytes = 1 << 20
	// onePage is how many pending pods are asked for, and pageBytes bounds them.
	onePage   = "500"
	pageBytes = 32 << 20
	// askTimeout bounds the question.
	askTimeout = 3 * time.Second
)

// kubeconfig is what is read of one: certificates and tokens, as k3s, rke2 and kubeadm write
// them. A user that a program or a provider vouches for is for kubectl.
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Contexts       []struct {
		Name    string
		Context struct{ Cluster, User string }
	}
	Clusters []struct {
		Name    string
		Cluster struct {
			Server        string
			Authority     string   `yaml:"certificate-authority"`
			AuthorityData embedded `yaml:"certificate-authority-data"`
			ServerName    string   `yaml:"tls-server-name"`
		}
	}
	Users []struct {
		Name string
		User struct {
			Certificate     string   `yaml:"client-certificate"`
			CertificateData embedded `yaml:"client-certificate-data"`
			Key             string   `yaml:"client-key"`
			KeyData         embedded `yaml:"client-key-data"`
			Token           string
		}
	}
}

// embedded is a file within a kubeconfig, in base64.
type embedded []byte

// UnmarshalYAML implements yaml.Unmarshaler.
func (e *embedded) UnmarshalYAML(n *yaml.Node) (err error) {
	*e, err = base64.StdEncoding.DecodeString(n.Value)
	return err
}

// client asks one API server.
type client struct {
	server *url.URL
	token  string
	http   *http.Client
}

// load reads a kubeconfig. What the daemon cannot do with it is an error.
func load(path string) (*client, error) {
	b, err := cli.ReadBounded(path, maxConfigBytes)
	if err != nil {
		return nil, err
	}
	var conf kubeconfig
	if err := yaml.Unmarshal(b, &conf); err != nil {
		return nil, fmt.Errorf("invalid kubeconfig %s: %w", path, err)
	}
	var cluster, user string
	for _, c := range conf.Contexts {
		if c.Name == conf.CurrentContext {
			cluster, user = c.Context.Cluster, c.Context.User
		}
	}
	out := &client{}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	dir := filepath.Dir(path)
	for _, c := range conf.Clusters {
		if c.Name != cluster {
			continue
		}
		if out.server, err = url.Parse(c.Cluster.Server); err != nil || out.server.Scheme != "https" {
			return nil, fmt.Errorf("invalid server %q in %s: want an https address", c.Cluster.Server, path)
		}
		ca, err := dataOf(dir, c.Cluster.AuthorityData, c.Cluster.Authority)
		if err != nil {
			return nil, err
		}
		settings.RootCAs, settings.ServerName = x509.NewCertPool(), c.Cluster.ServerName
		if !settings.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("kubeconfig %s has no certificate of the API server", path)
		}
	}
	for _, u := range conf.Users {
		if u.Name != user {
			continue
		}
		out.token = u.User.Token
		cert, cerr := dataOf(dir, u.User.CertificateData, u.User.Certificate)
		key, kerr := dataOf(dir, u.User.KeyData, u.User.Key)
		if err := errors.Join(cerr, kerr); err != nil {
			return nil, err
		}
		if len(cert) > 0 {
			pair, err := tls.X509KeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("client certificate of kubeconfig %s: %w", path, err)
			}
			settings.Certificates = []tls.Certificate{pair}
		}
	}
	if out.server == nil || out.token == "" && len(settings.Certificates) == 0 {
		return nil, fmt.Errorf("kubeconfig %s has no certificate and no token; `seeder doctor` asks by kubectl", path)
	}
	out.http = &http.Client{Timeout: askTimeout, Transport: &http.Transport{TLSClientConfig: settings, DisableKeepAlives: true}}
	return out, nil
}

// dataOf is what stands in a kubeconfig, or the file that it names.
func dataOf(dir string, data []byte, file string) ([]byte, error) {
	if len(data) > 0 || file == "" {
		return data, nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	return cli.ReadBounded(file, maxConfigBytes)
}

// Ask asks the API server of a kubeconfig, without a program, for askTimeout at most.
func Ask(ctx context.Context, path string) ([]Waiting, error) {
	c, err := load(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return c.waiting(ctx)
}

// waiting asks for the pending pods and returns those that wait for an image.
func (c *client) waiting(ctx context.Context) (out []Waiting, err error) {
	u := c.server.JoinPath("api/v1/pods")
	u.RawQuery = url.Values{"fieldSelector": {"status.phase=Pending"}, "limit": {onePage}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", c.server.Host, strings.ToLower(resp.Status))
	}
	err = decode(io.LimitReader(resp.Body, pageBytes), func(p pod) { out = append(out, p.waiting()...) })
	return out, err
}
