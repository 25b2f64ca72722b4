#!/bin/bash
# Builds the programs of a Kubernetes cluster from Debian's source package `kubernetes` 1.20 (the last that has all of them),
# with Debian's Go. Nothing is installed; some 115 MB are downloaded, and 1.6 GB are needed while it builds.
#   build-kubernetes.sh DIRECTORY     DIRECTORY/bin has them then
set -euo pipefail
directory=$(realpath "$1")
suite=bookworm
jobs=$(nproc)
apt=$directory/apt source=$directory/gopath/src/k8s.io/kubernetes goroot=$directory/go/usr/lib/go-1.19
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial} "$directory"/{bin,home,downloads,gopath/src/k8s.io}

# The machine's own mirror, with the index of sources, which is not read as a rule.
mirror=$(awk -v suite="$suite" '/^URIs:/{uri=$2} /^Suites:/{for(i=2;i<=NF;i++) if($i==suite){print uri; exit}}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
[ -n "$mirror" ] || mirror=$(awk -v suite="$suite" '$1=="deb"{for(i=2;i<NF;i++) if($i ~ /^http/ && $(i+1)==suite){print $i; exit}}' \
  /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true)
[ -n "$mirror" ] || { echo "apt's sources have no mirror of Debian $suite" >&2; exit 1; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$keyring" ] || { echo "no $keyring: install debian-archive-keyring" >&2; exit 1; }
for type in deb deb-src; do echo "$type [signed-by=$keyring] $mirror $suite main"; done >"$apt/sources.list"
: >"$apt/status"
get() {
  apt-get -q -o Dir::State="$apt/state" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" \
    -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent -o Dir::Etc::preferencesparts=/nonexistent \
    -o APT::Sandbox::User=root "$@"
}

if [ ! -d "$source" ]; then
  cd "$directory/downloads"
  get update
  get download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev
  get source --download-only kubernetes
  for package in golang-1.19-*.deb golang-github-modern-go-reflect2-dev_*.deb; do dpkg-deb --extract "$package" "$directory/go"; done
  rm -rf "$source.part"
  dpkg-source --no-check -x kubernetes_1.20*.dsc "$source.part"
  # The vendored 1.0.1 crashes under this Go: the first custom resource would kill the API server. 1.0.2 is the fix.
  fixed=$(cd "$directory/go/usr/share/gocode/src" && find . -type d -path '*/modern-go/reflect2')
  rm -rf "$source.part/vendor/$fixed"
  cp -r "$directory/go/usr/share/gocode/src/$fixed" "$source.part/vendor/$fixed"
  mv "$source.part" "$source"
fi

export GOROOT=$goroot GOPATH=$directory/gopath GOCACHE=$directory/gocache HOME=$directory/home GOPROXY=off GO111MODULE=off \
  CGO_ENABLED=0 GOFLAGS=-p=$jobs GOMAXPROCS=$jobs PATH=$goroot/bin:$PATH
cd "$source"
# The one generated file that the source package lacks.
if [ ! -s pkg/generated/openapi/zz_generated.openapi.go ]; then
  go build -o "$GOPATH/bin/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  packages=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg plugin vendor/k8s.io/*/ | grep -v -e _test.go \
    -e vendor/k8s.io/code-generator/ -e vendor/k8s.io/sample-apiserver/ -e vendor/k8s.io/kube-openapi/ -e vendor/k8s.io/gengo/ |
    xargs -n1 dirname | sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
  "$GOPATH/bin/openapi-gen" --logtostderr --v 0 -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
    -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$directory/violations.report"
fi
flags="-s -w"
for package in k8s.io/kubernetes/vendor/k8s.io/component-base/version k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version; do
  flags="$flags -X $package.gitVersion=v1.20.2 -X $package.gitMajor=1 -X $package.gitMinor=20 -X $package.gitTreeState=clean -X $package.buildDate=2021-01-13T13:20:00Z"
done
programs="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy"
go build -trimpath -tags providerless,dockerless,netgo,osusergo -ldflags "$flags" -o "$directory/bin/" $(printf './cmd/%s ' $programs)
# Only the programs are wanted from now on.
cd "$directory"
chmod -R u+w gopath gocache
rm -rf gopath gocache go apt downloads home violations.report
