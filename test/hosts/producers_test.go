package hosts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/test/harness"
)

// production is an archive that a real program has made.
type production struct {
	producer, shape string
	file            string
	ref             string // given with it; "" where the archive has the name
	named           string // the name to run it under
}

// TestProducers announces what the programs of the field write, and runs it on both
// hosts. It prints a table: producer, version, shape, result.
func TestProducers(t *testing.T) {
	if os.Getenv("PRODUCERS") == "" {
		t.Skip("it needs podman, buildah, skopeo, umoci, Docker, crane and ko; `make producers` runs it")
	}
	n := harness.NewCluster(t, harness.Newest, 2, "")
	p := &producers{Host: n.Hosts[0], t: t, dir: t.TempDir(), versions: map[string]string{}}
	var rows []string
	for _, make := range []func() []production{p.podman, p.buildah, p.skopeo, p.umoci, p.docker, p.craneAndKo} {
		for _, made := range make() {
			result := p.result(made, n.Hosts)
			if result != "ready, runs" {
				t.Errorf("%s, %s: %s", made.producer, made.shape, result)
			}
			rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |", made.producer, p.versions[made.producer], made.shape, result))
		}
	}
	fmt.Printf("| producer | version | shape | result |\n|---|---|---|---|\n%s\n", strings.Join(rows, "\n"))
}

// producers runs them on a host.
type producers struct {
	*harness.Host
	t        *testing.T
	dir      string
	versions map[string]string // by producer
}

func (p *producers) file(name string) string { return filepath.Join(p.dir, name) }

// version notes what a program says of itself.
func (p *producers) version(producer, program string, args ...string) {
	out := strings.Fields(harness.Run(p.t, p.In(p.t.Context(), append([]string{program}, args...)...)))
	for _, word := range out {
		if word = strings.Trim(word, "v,"); strings.Contains(word, ".") && word[0] >= '0' && word[0] <= '9' {
			p.versions[producer] = word
			return
		}
	}
	p.versions[producer] = "?"
}

// result announces an archive and runs a container from it on every host.
func (p *producers) result(made production, hosts []*harness.Host) string {
	args := []string{"announce", "--from", made.file}
	if made.ref != "" {
		args = append(args, made.ref)
	}
	if err := p.Try(nil, args...); err != nil {
		return err.Error()
	}
	for _, h := range hosts {
		if got := h.RunContainer(made.named); got != "produced" {
			return fmt.Sprintf("prints %q on %s", got, h.Name)
		}
	}
	return "ready, runs"
}

const producedTar = "produced.tar" // a docker-archive of Podman's, from which others copy

func (p *producers) podman() []production {
	p.t.Helper()
	e := harness.Podman(p.Host)
	p.version("podman", "podman", "--version")
	e.Build(e.BuildContext("produced"), "produced-podman:v1")
	const name = "localhost/produced-podman:v1"
	p.Sh(harness.PodmanArgs + " save --format docker-archive -o " + p.file(producedTar) + " " + name)
	p.Sh(harness.PodmanArgs + " save --format oci-archive -o " + p.file("podman-oci.tar") + " " + name)
	p.Sh(harness.PodmanArgs + " save --format oci-dir -o " + p.file("podman-oci-dir") + " " + name)
	return []production{
		{producer: "podman", shape: "save, docker-archive", file: p.file(producedTar), named: name},
		{producer: "podman", shape: "save --format oci-archive", file: p.file("podman-oci.tar"), named: name},
		{producer: "podman", shape: "save --format oci-dir, the directory", file: p.file("podman-oci-dir"), ref: "podmandir:v1", named: "docker.io/library/podmandir:v1"},
	}
}

func (p *producers) buildah() []production {
	p.t.Helper()
	p.version("buildah", "buildah", "--version")
	const store = "buildah --root /var/lib/buildah --runroot /run/buildah --storage-driver vfs "
	dir := harness.Engine{Host: p.Host}.BuildContext("produced")
	p.Sh(store + "build --isolation chroot -q -t produced-buildah:v1 " + dir)
	for _, to := range []string{"oci-archive:" + p.file("buildah-oci.tar") + ":produced-buildah-oci:v1", "docker-archive:" + p.file("buildah-docker.tar") + ":produced-buildah-docker:v1"} {
		p.Sh(store + "push -q localhost/produced-buildah:v1 " + to)
	}
	return []production{
		{producer: "buildah", shape: "push oci-archive:FILE:NAME:TAG", file: p.file("buildah-oci.tar"), named: "docker.io/library/produced-buildah-oci:v1"},
		{producer: "buildah", shape: "push docker-archive:FILE:NAME:TAG", file: p.file("buildah-docker.tar"), named: "docker.io/library/produced-buildah-docker:v1"},
	}
}

func (p *producers) skopeo() []production {
	p.t.Helper()
	p.version("skopeo", "skopeo", "--version")
	var out []production
	for shape, to := range map[string]string{
		"oci-archive, with a tag": "oci-archive:" + p.file("skopeo-oci.tar") + ":v1", "docker-archive, without a name": "docker-archive:" + p.file("skopeo-docker.tar"),
		"oci:, the directory": "oci:" + p.file("skopeo-dir") + ":v1",
	} {
		p.Sh("skopeo copy -q --insecure-policy docker-archive:" + p.file(producedTar) + " " + to)
		name := fmt.Sprint("produced-skopeo", len(out), ":v1")
		out = append(out, production{producer: "skopeo", shape: "copy to " + shape, file: strings.Split(to, ":")[1], ref: name, named: "docker.io/library/" + name})
	}
	return out
}

func (p *producers) umoci() []production {
	p.t.Helper()
	p.version("umoci", "umoci", "--version")
	layout, root := p.file("umoci"), harness.Engine{Host: p.Host}.BuildContext("produced")
	image := " --image " + layout + ":v1 "
	p.Sh("umoci init --layout " + layout + " && umoci new" + image)
	for from, to := range map[string]string{"busybox": "/bin/sh", "say": "/say"} {
		p.Sh("umoci insert" + image + filepath.Join(root, from) + " " + to)
	}
	p.Sh("umoci config" + image + "--config.cmd /say --os linux --architecture amd64")
	p.Sh("tar -C " + layout + " -cf " + p.file("umoci.tar") + " .")
	return []production{
		{producer: "umoci", shape: "an OCI layout, packed by tar", file: p.file("umoci.tar"), ref: "produced-umoci:v1", named: "docker.io/library/produced-umoci:v1"},
		{producer: "umoci", shape: "the directory of an OCI layout", file: layout, ref: "produced-umoci:v2", named: "docker.io/library/produced-umoci:v2"},
	}
}

func (p *producers) docker() []production {
	p.t.Helper()
	e := harness.Docker(p.Host)
	bin, err := filepath.Abs("../../bin/docker/usr/bin/docker")
	if err != nil {
		p.t.Fatal(err)
	}
	p.version("docker", bin, "--version")
	e.Build(e.BuildContext("produced"), "produced-docker:v1")
	p.Sh(bin + " save -o " + p.file("docker.tar") + " produced-docker:v1")
	p.Sh(bin + " save produced-docker:v1 | bzip2 > " + p.file("docker.tar.bz2"))
	return []production{
		{producer: "docker", shape: "save", file: p.file("docker.tar"), named: "docker.io/library/produced-docker:v1"},
		{producer: "docker", shape: "save \\| bzip2", file: p.file("docker.tar.bz2"), ref: "produced-docker:v2", named: "docker.io/library/produced-docker:v2"},
	}
}

// craneAndKo work on a registry, which crane has, too.
func (p *producers) craneAndKo() []production {
	p.t.Helper()
	bin, err := filepath.Abs("../../bin/producers")
	if err != nil {
		p.t.Fatal(err)
	}
	crane, ko := filepath.Join(bin, "crane"), filepath.Join(bin, "ko")
	const registry = "127.0.0.1:5055"
	p.Host.Start(nil, crane, "registry", "serve", "--address", registry)
	root := harness.Engine{Host: p.Host}.BuildContext("produced")
	p.Sh("for i in $(seq 100); do " + crane + " catalog " + registry + " && exit 0; sleep 0.1; done; exit 1")
	p.Sh("mkdir -p " + root + "/bin && cp " + root + "/busybox " + root + "/bin/sh && tar -C " + root + " -cf " + p.file("layer.tar") + " bin say")
	p.Sh(crane + " append -q --oci-empty-base -f " + p.file("layer.tar") + " -t " + registry + "/base:v1 2>/dev/null || " + crane + " append --oci-empty-base -f " + p.file("layer.tar") + " -t " + registry + "/base:v1")
	p.Sh(crane + " mutate " + registry + "/base:v1 --cmd /say -t " + registry + "/cr:v2")
	p.Sh(crane + " mutate " + registry + "/cr:v2 --set-platform linux/amd64 -t " + registry + "/base:v3")
	p.version("crane", "sh", "-c", "go version -m "+crane+" | grep 'mod.*go-containerregistry'")
	p.version("ko", "sh", "-c", "go version -m "+ko+" | grep 'mod.*google/ko'")
	var out []production
	for _, format := range []string{"tarball", "legacy", "oci"} {
		file := p.file("crane-" + format)
		p.Sh(crane + " pull --format " + format + " " + registry + "/cr:v2 " + file)
		name := "produced-crane-" + format + ":v1"
		out = append(out, production{producer: "crane", shape: "pull --format " + format + ", config without a platform", file: file, ref: name, named: "docker.io/library/" + name})
	}
	app := p.file("app")
	p.Sh("mkdir -p " + app)
	for name, text := range map[string]string{"go.mod": "module example.com/app\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() { say() }\n",
		"print.go": "package main\n\nimport \"fmt\"\n\nfunc say() { fmt.Println(\"produced\") }\n"} {
		if err := os.WriteFile(filepath.Join(app, name), []byte(text), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
	p.Sh("cd " + app + " && GOFLAGS=-mod=mod GOCACHE=" + p.file("gocache") + " HOME=" + p.dir + " KO_DOCKER_REPO=example.com/produced KO_DEFAULTBASEIMAGE=" + registry +
		"/base:v3 " + ko + " build --bare --sbom none --push=false --tarball " + p.file("ko.tar") + " -t v1 .")
	return append(out, production{producer: "ko", shape: "build --tarball", file: p.file("ko.tar"), ref: "produced-ko:v1", named: "docker.io/library/produced-ko:v1"})
}
