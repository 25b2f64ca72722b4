#!/bin/sh
# Puts what holds pods at boot on this node: run it as root on a node where the agent runs, from the directory it lies in.
#   install.sh            installs
#   install.sh --remove   takes it away
set -eu
here=$(dirname "$0")
if [ "${1:-}" = --remove ]; then
  if [ -d /run/systemd/system ]; then systemctl disable egress-hold.service; else rc-update del egress-hold default; fi
  rm -f /usr/local/sbin/egress-agent /etc/systemd/system/egress-hold.service /etc/init.d/egress-hold
  rm -f /etc/egress-agent/hold.yaml /etc/egress-agent/make-cgroup
  rmdir /etc/egress-agent 2>/dev/null || true
  exit 0
fi
# The very program that the node's agent runs.
agent=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' /run/egress-agent/run/traces.json)
install -D -m 755 "/proc/$agent/exe" /usr/local/sbin/egress-agent
mkdir -p /etc/egress-agent
[ -e /etc/egress-agent/hold.yaml ] || install -m 644 "$here/hold.yaml" /etc/egress-agent/hold.yaml
cgroup=$(sed -n 's/.*"cgroup": *"\(.*\)".*/\1/p' /run/egress-agent/run/traces.json)
sed -i "s|^cgroup: .*|cgroup: /$(basename "$cgroup")|" /etc/egress-agent/hold.yaml
install -m 755 "$here/make-cgroup" /etc/egress-agent/make-cgroup
if [ -d /run/systemd/system ]; then
  install -m 644 "$here/egress-hold.service" /etc/systemd/system/egress-hold.service
  systemctl daemon-reload
  systemctl enable egress-hold.service
else
  install -m 755 "$here/egress-hold.openrc" /etc/init.d/egress-hold
  rc-update add egress-hold default
fi
echo "installed; check \`internal\` in /etc/egress-agent/hold.yaml"
