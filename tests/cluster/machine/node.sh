#!/bin/bash
# One node, begun by cluster.sh: `outer` on the machine, `inner` in the node's own namespaces, where it stays.
set -euo pipefail
i=$2 name=egress-node$2
export PATH=$BIN:$ROOT/usr/bin:$ROOT/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
D=$RUN/node$i
mounts() { awk '($3=="cgroup"||$3=="cgroup2") && $2 ~ "^/sys/fs/cgroup"{print $2, $3, $4}' /proc/self/mounts | sort -u; }
if [ "$1" = outer ]; then
  while read -r mount _; do echo $$ >"$mount/$name/cgroup.procs"; done < <(mounts)
  # nsenter --net, not `ip netns exec`: that mounts another /sys, without cgroups.
  exec nsenter --net="/run/netns/$name" unshare --mount --cgroup --uts --propagation slave bash "$0" inner "$i"
fi

hostname "node$i"
mount --make-rshared /
# The node's cgroup is the root of every hierarchy that the node sees.
all=$(mounts)
while read -r mount _; do umount "$mount"; done <<<"$all"
if [ "$CGROUPS" = v2 ]; then
  umount /sys/fs/cgroup 2>/dev/null || true
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else while read -r mount type options; do
  if [ "$type" = cgroup2 ]; then mount -t cgroup2 cgroup2 "$mount"
  else mount -t cgroup -o "$(tr , '\n' <<<"$options" | grep -v -x -e rw -e relatime -e nosuid -e nodev -e noexec | paste -sd,)" cgroup "$mount"; fi
done <<<"$all"; fi
# A file system of pins is a machine's own, too.
mount -t bpf -o nosuid,nodev,noexec,mode=0700 bpf /sys/fs/bpf
# What the kubelet sets for the whole machine it sets in files of the node instead.
mkdir -p "$D"/{sysctl,kubelet,containerd,cni,manifests,var,varwork}
for s in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  f=$D/sysctl/${s//\//.}; cat "/proc/sys/$s" >"$f"; mount --bind "$f" "/proc/sys/$s"
done
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/netns /run/lock
mount -t overlay overlay -o "lowerdir=/var,upperdir=$D/var,workdir=$D/varwork" /var
mkdir -p /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers
mount --bind "$D/kubelet" /var/lib/kubelet; mount --bind "$D/containerd" /var/lib/containerd
mount --make-rshared /var/lib/kubelet
echo 1 >/proc/sys/net/ipv4/ip_forward
cat >"$D/cni/10-bridge.conflist" <<C
{"cniVersion": "0.4.0", "name": "k8s", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
 "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "10.42.$i.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
runc=$ROOT/usr/sbin/runc
enforce='["pods"]'
if [ "$CGROUPS" = v2 ]; then
  # The machine's v1 hierarchies hold cpu, memory and pids: here those limits do not exist, and runc fails on them.
  enforce='[]'
  cat >"$D/runc" <<R
#!/bin/bash
for ((j = 1; j < \$#; j++)); do [ "\${!j}" = --bundle ] && { k=\$((j + 1)); bundle=\${!k}; }; done
if [ -n "\${bundle:-}" ] && [ -f "\$bundle/config.json" ]; then
  python3 - "\$bundle/config.json" <<'P'
import json, sys
config = json.load(open(sys.argv[1]))
for limit in ("cpu", "memory", "pids", "unified"):
    config["linux"].get("resources", {}).pop(limit, None)
json.dump(config, open(sys.argv[1], "w"))
P
fi
exec $runc "\$@"
R
  chmod +x "$D/runc"; runc=$D/runc
fi
cat >"$D/containerd.toml" <<C
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$ROOT/usr/lib/cni"
    conf_dir = "$D/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "$runc"
      SystemdCgroup = false
C
cat >"$D/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 10.123.0.$((10 + i))
healthzBindAddress: 127.0.0.1
cgroupDriver: cgroupfs
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$RUN/pki/ca.crt"}}
authorization: {mode: Webhook}
makeIPTablesUtilChains: false
enforceNodeAllocatable: $enforce
evictionHard: {memory.available: "1Mi"}
imageGCHighThresholdPercent: 100
clusterDNS: [10.43.0.10]
clusterDomain: cluster.local
resolvConf: "$D/resolv.conf"
staticPodPath: "$D/manifests"
rotateCertificates: false
serializeImagePulls: false
nodeStatusUpdateFrequency: 4s
registryPullQPS: 0
C
# The test's own name server: 10.43.0.10 is a Service in front of it.
printf 'nameserver 198.51.100.53\nsearch corp.example\n' >"$D/resolv.conf"
mount --bind "$D/resolv.conf" /etc/resolv.conf
# A host's unit that is to run before the kubelet: the restart test puts one here.
[ ! -x "$D/before-kubelet" ] || "$D/before-kubelet"
containerd --config "$D/containerd.toml" >>"$RUN/log/node$i.containerd.log" 2>&1 &
echo $! >"$RUN/pids/node$i.containerd"
for _ in $(seq 200); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
for archive in "$IMAGES"/*.tar; do ctr -n k8s.io images import --no-unpack "$archive" >/dev/null; done
echo $$ >"$RUN/pids/node$i.holder"
kubelet --config "$D/kubelet.yaml" --kubeconfig "$RUN/node$i.kubeconfig" --hostname-override "node$i" --node-ip "10.123.0.$((10 + i))" \
  --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock --root-dir /var/lib/kubelet \
  --cert-dir "$D/pki" --register-node=true --v=2 >>"$RUN/log/node$i.kubelet.log" 2>&1 &
echo $! >"$RUN/pids/node$i.kubelet"
kube-proxy --kubeconfig "$RUN/kube-proxy.kubeconfig" --hostname-override "node$i" --proxy-mode=iptables --cluster-cidr 10.42.0.0/16 \
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
  --healthz-bind-address 127.0.0.1 --metrics-bind-address 127.0.0.1 >>"$RUN/log/node$i.kube-proxy.log" 2>&1 &
echo $! >"$RUN/pids/node$i.kube-proxy"
# A pod's own v2 cgroup goes with the pod, as it does on a machine with cgroup v2 alone; here the kubelet does not see
# it (hybrid: it knows the v1 hierarchies only; v2: it lists pods per controller, and no controller is left for v2).
v2=/sys/fs/cgroup; [ ! -d $v2/unified ] || v2=$v2/unified
while kill -0 "$(cat "$RUN/pids/node$i.kubelet" 2>/dev/null)" 2>/dev/null; do
  for d in $v2/kubepods/pod* $v2/kubepods/*/pod*; do
    [ -d "$d" ] || continue
    if [ "$v2" = /sys/fs/cgroup ]; then [ $(($(date +%s) - $(stat -c %Y "$d"))) -ge 3 ] || continue
    else [ ! -d "/sys/fs/cgroup/memory${d#"$v2"}" ] || continue; fi
    rmdir "$d" 2>/dev/null || true
  done
  sleep 0.5
done
