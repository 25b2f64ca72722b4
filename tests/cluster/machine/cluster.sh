#!/bin/bash
# A real Kubernetes on this machine, for tests: no systemd, no container engine, nothing installed, and no way out of it.
#   cluster.sh up        control plane and nodes; returns when all nodes are Ready
#   cluster.sh enter N CMD..   CMD on node N: in its network, its mounts and its cgroup root
#   cluster.sh reboot N  what a reboot leaves of node N (its files), begun again
#   cluster.sh api stop|start  the API server alone
#   cluster.sh rules stop|start  a later Kubernetes' server of custom resources, which knows rules in CEL: rules.kubeconfig
#   cluster.sh down      ends what was started, by pid, and removes its cgroups, namespaces and interfaces
#
#   machine --veth-- egress-cluster: etcd, kube-apiserver, controller manager, scheduler, bridge 10.123.0.1
#   10.122.0.2  10.122.0.1              |                    |                    |
#                                    egress-node1         egress-node2       (the test's own world)
#                                    10.123.0.11          10.123.0.12        10.123.0.2
#                                    pods 10.42.1.0/24   10.42.2.0/24
#
# Given by the environment: BIN (Kubernetes' programs), ROOT (etcd, containerd, runc, CNI plugins, kubectl), IMAGES (archives
# for every node), RUN (state), CGROUPS: hybrid (the machine's v1 hierarchies with v2 at unified) or v2 (v2 alone).
# Where it says /tmp, /var or /run of a node, that is the node's own.
set -euo pipefail
: "${BIN:?}" "${ROOT:?}" "${RUN:?}" "${CGROUPS:=hybrid}"
HERE=$(cd "$(dirname "$0")" && pwd)
export PATH=$BIN:$ROOT/usr/bin:$ROOT/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PKI=$RUN/pki KUBECONFIG_ADMIN=$RUN/kubeconfig
CONTROL=egress-cluster API=10.123.0.1 OUTSIDE=10.122.0.1
NODES=2

in_control() { nsenter --net=/run/netns/$CONTROL -- "$@"; }
begin() { # NAME CMD...: in the background in the control plane's network, its pid in pids/NAME
  local name=$1; shift
  setsid nsenter --net=/run/netns/$CONTROL -- "$@" >>"$RUN/log/$name.log" 2>&1 </dev/null &
  echo $! >"$RUN/pids/$name"
}
wait_for() { # SECONDS TEXT CMD...
  local seconds=$1 text=$2 i; shift 2
  for ((i = 0; i < seconds * 5; i++)); do "$@" >/dev/null 2>&1 && return 0; sleep 0.2; done
  echo "timed out: $text (logs: $RUN/log)" >&2
  return 1
}
certificate() { # NAME CN O [SUBJECTALTNAME]
  local use="extendedKeyUsage=clientAuth"
  [ -z "${4:-}" ] || use=$(printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=%s' "$4")
  openssl ecparam -name prime256v1 -genkey -noout 2>/dev/null | openssl pkcs8 -topk8 -nocrypt -out "$PKI/$1.key"
  openssl req -new -key "$PKI/$1.key" -subj "/O=$3/CN=$2" |
    openssl x509 -req -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 365 -sha256 -out "$PKI/$1.crt" \
      -extfile <(printf 'basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature,keyEncipherment\n%s\n' "$use") 2>/dev/null
}
kubeconfig() { # FILE CERTIFICATE ADDRESS
  cat >"$1" <<K
apiVersion: v1
kind: Config
current-context: egress-test
clusters: [{name: c, cluster: {server: "https://$3:6443", certificate-authority-data: $(base64 -w0 <"$PKI/ca.crt")}}]
users: [{name: u, user: {client-certificate-data: $(base64 -w0 <"$PKI/$2.crt"), client-key-data: $(base64 -w0 <"$PKI/$2.key")}}]
contexts: [{name: egress-test, context: {cluster: c, user: u}}]
K
  chmod 600 "$1"
}
kctl() { kubectl --kubeconfig "$KUBECONFIG_ADMIN" "$@"; }

network() {
  ip netns add $CONTROL
  ip -n $CONTROL link set lo up
  ip -n $CONTROL link add egress0 type bridge
  ip -n $CONTROL addr add $API/24 dev egress0
  ip -n $CONTROL link set egress0 up
  # For a person's kubectl. No route leads on from either end.
  ip link add egress-k8s type veth peer name machine netns $CONTROL
  ip addr add 10.122.0.2/30 dev egress-k8s; ip link set egress-k8s up
  ip -n $CONTROL addr add $OUTSIDE/30 dev machine; ip -n $CONTROL link set machine up
}

pki() {
  [ ! -f "$PKI/ca.crt" ] || return 0
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$PKI/ca.key"
  openssl req -x509 -new -key "$PKI/ca.key" -subj /CN=egress-test-ca -days 365 -sha256 -out "$PKI/ca.crt" \
    -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign
  certificate apiserver kube-apiserver system:nodes "IP:127.0.0.1,IP:$API,IP:$OUTSIDE,IP:10.43.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
  certificate admin admin system:masters
  certificate kubelet-client kube-apiserver-kubelet-client system:masters
  certificate front-proxy front-proxy front-proxy
  certificate kcm system:kube-controller-manager system:kube-controller-manager
  certificate scheduler system:kube-scheduler system:kube-scheduler
  certificate kube-proxy system:kube-proxy system:kube-proxy
  for ((i = 1; i <= NODES; i++)); do certificate "node$i" "system:node:node$i" system:nodes; done
  openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
  openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
}

api_start() {
  begin kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --bind-address 0.0.0.0 --secure-port 6443 --advertise-address $API \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --kubelet-client-certificate "$PKI/kubelet-client.crt" --kubelet-client-key "$PKI/kubelet-client.key" \
    --requestheader-client-ca-file "$PKI/ca.crt" --requestheader-allowed-names=front-proxy --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file "$PKI/front-proxy.crt" --proxy-client-key-file "$PKI/front-proxy.key" \
    --kubelet-preferred-address-types=InternalIP --service-cluster-ip-range 10.43.0.0/24 \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file "$PKI/sa.pub" --service-account-signing-key-file "$PKI/sa.key" \
    --cert-dir "$RUN/apiserver-certs" --endpoint-reconciler-type=lease
  wait_for 90 'kube-apiserver ready' kctl get --raw /readyz
}

# Kubernetes 1.20 drops such rules. This server has its own objects in the same etcd, and asks the API server who calls.
rules_start() {
  begin rules apiextensions-apiserver --etcd-servers http://127.0.0.1:2379 --etcd-prefix /rules --kubeconfig "$RUN/admin-inside.kubeconfig" \
    --authentication-kubeconfig "$RUN/admin-inside.kubeconfig" --authorization-kubeconfig "$RUN/admin-inside.kubeconfig" --client-ca-file "$PKI/ca.crt" \
    --bind-address 0.0.0.0 --secure-port 6444 --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --enable-priority-and-fairness=false \
    --disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,ValidatingAdmissionPolicy,MutatingAdmissionPolicy
  sed "s#:6443#:6444#" "$KUBECONFIG_ADMIN" >"$RUN/rules.kubeconfig"
  wait_for 60 'the server of rules ready' kubectl --kubeconfig "$RUN/rules.kubeconfig" get --raw /readyz
}

control() {
  pki
  kubeconfig "$RUN/admin-inside.kubeconfig" admin $API
  kubeconfig "$KUBECONFIG_ADMIN" admin $OUTSIDE
  for who in kcm scheduler kube-proxy; do kubeconfig "$RUN/$who.kubeconfig" $who $API; done
  rm -rf "$RUN/etcd"; mkdir -m 700 "$RUN/etcd"
  begin etcd etcd --data-dir "$RUN/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster default=http://127.0.0.1:2380 --unsafe-no-fsync
  api_start
  begin kube-controller-manager kube-controller-manager --kubeconfig "$RUN/kcm.kubeconfig" --authentication-kubeconfig "$RUN/kcm.kubeconfig" \
    --authorization-kubeconfig "$RUN/kcm.kubeconfig" --bind-address 127.0.0.1 --port=0 --secure-port 10257 --cert-dir "$RUN/kcm-certs" --leader-elect=false \
    --node-monitor-grace-period=20s --service-account-private-key-file "$PKI/sa.key" --root-ca-file "$PKI/ca.crt" --use-service-account-credentials=true
  begin kube-scheduler kube-scheduler --kubeconfig "$RUN/scheduler.kubeconfig" --authentication-kubeconfig "$RUN/scheduler.kubeconfig" \
    --authorization-kubeconfig "$RUN/scheduler.kubeconfig" --bind-address 127.0.0.1 --port=0 --secure-port 10259 --cert-dir "$RUN/sched-certs" --leader-elect=false
  wait_for 90 'the default service account' kctl -n default get serviceaccount default
}

hierarchies() { awk '($3=="cgroup"||$3=="cgroup2") && $2 ~ "^/sys/fs/cgroup"{print $2}' /proc/self/mounts | sort -u; }

node_network() {
  local i=$1 name=egress-node$1 other
  ip netns add "$name"
  # A machine's address does not change when it starts again: with another one, what escapes would not arrive for a while.
  ip -n $CONTROL link add "node$i" type veth peer name eth0 address "02:00:00:00:00:1$i" netns "$name"
  ip -n $CONTROL link set "node$i" master egress0 up
  ip -n "$name" link set lo up
  ip -n "$name" addr add "10.123.0.$((10 + i))/24" dev eth0
  ip -n "$name" link set eth0 up
  # Services, the other nodes' pods, and the documentation ranges of the test's world: nothing else is reachable.
  ip -n "$name" route add 10.43.0.0/24 via $API
  for ((other = 1; other <= NODES; other++)); do
    [ "$other" = "$i" ] || ip -n "$name" route add "10.42.$other.0/24" via "10.123.0.$((10 + other))"
  done
  for range in 198.51.100.0/24 203.0.113.0/24; do ip -n "$name" route add $range via 10.123.0.2; done
  ip -n $CONTROL route replace "10.42.$i.0/24" via "10.123.0.$((10 + i))"
}

node() {
  local i=$1 mount name=egress-node$1
  node_network "$i"
  for mount in $(hierarchies); do # one cgroup for the whole node in each hierarchy: the root that the node sees
    mkdir -p "$mount/$name"
    if [ -f "$mount/cpuset.cpus" ]; then
      cat "$mount/cpuset.cpus" >"$mount/$name/cpuset.cpus"
      cat "$mount/cpuset.mems" >"$mount/$name/cpuset.mems"
    fi
    [ ! -f "$mount/memory.use_hierarchy" ] || echo 1 >"$mount/$name/memory.use_hierarchy" 2>/dev/null || true
  done
  kubeconfig "$RUN/node$i.kubeconfig" "node$i" $API
  BIN=$BIN ROOT=$ROOT RUN=$RUN IMAGES=$IMAGES CGROUPS=$CGROUPS setsid bash "$HERE/node.sh" outer "$i" >>"$RUN/log/node$i.log" 2>&1 </dev/null &
  echo $! >"$RUN/pids/node$i"
}
is_ready() { [ "$(kctl get node "node$1" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]; }

ends() { # PIDFILE...: asks them to end, waits, and ends those that wait for somebody else (the API server: for its watchers)
  local file i pid
  for file in "$@"; do [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true; done
  for file in "$@"; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    for ((i = 0; i < 60; i++)); do
      [ "$(awk '{print $3}' "/proc/$pid/stat" 2>/dev/null || echo Z)" != Z ] || break
      [ $i -lt 20 ] || kill -9 "$pid" 2>/dev/null || true
      sleep 0.25
    done
    rm -f "$file"
  done
}
node_down() { # I
  local i=$1 name=egress-node$1 cgroup pid round
  # Its node.sh ends with the kubelet.
  ends "$RUN/pids/node$i.kubelet" "$RUN/pids/node$i.kube-proxy" "$RUN/pids/node$i.containerd"
  # A cgroup may be busy for a moment after its last process has ended.
  for ((round = 0; round < 120; round++)); do
    for cgroup in /sys/fs/cgroup/"$name" /sys/fs/cgroup/*/"$name"; do
      [ -d "$cgroup" ] || continue
      for pid in $(find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u); do
        [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null || true
      done
      find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    ls -d /sys/fs/cgroup/"$name" /sys/fs/cgroup/*/"$name" >/dev/null 2>&1 || break
    sleep 0.25
  done
  rm -f "$RUN/pids/node$i" "$RUN/pids/node$i.holder"
  ip -n $CONTROL link del "node$i" 2>/dev/null || true
  ip netns del "$name" 2>/dev/null || true
}

case ${1:-} in
up)
  : "${IMAGES:?}"
  mkdir -p "$RUN"/{pki,pids,log}
  echo "$CGROUPS" >"$RUN/cgroups"
  network
  control
  for ((i = 1; i <= NODES; i++)); do node "$i"; done
  for ((i = 1; i <= NODES; i++)); do wait_for 120 "node$i Ready" is_ready "$i"; done ;;
enter)
  node=$2; shift 2
  exec nsenter -t "$(cat "$RUN/pids/node$node.holder")" -n -m -C -u -- "$@" ;;
reboot)
  CGROUPS=$(cat "$RUN/cgroups")
  node_down "$2"
  node "$2"
  wait_for 120 "node$2 Ready" test -f "$RUN/pids/node$2.kubelet" ;;
api)
  case $2 in
  stop) ends "$RUN/pids/kube-apiserver" ;;
  start) api_start ;;
  esac ;;
rules)
  case $2 in
  stop) ends "$RUN/pids/rules" ;;
  start) rules_start ;;
  esac ;;
down)
  ends "$RUN/pids/kube-scheduler" "$RUN/pids/kube-controller-manager"
  for ((i = 1; i <= NODES; i++)); do node_down "$i"; done
  ends "$RUN/pids/rules" "$RUN/pids/kube-apiserver" "$RUN/pids/etcd"
  ip link del egress-k8s 2>/dev/null || true
  ip netns del $CONTROL 2>/dev/null || true
  rm -rf "$RUN/pids" "$RUN/etcd" "$RUN"/node[0-9] ;;
*)
  sed -n '2,8p' "$0"
  exit 2 ;;
esac
