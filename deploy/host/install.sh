#!/bin/sh
# Puts what holds pods at boot on this node: run it as root on a node where the agent runs, from the directory it lies in.
#   install.sh            installs, or brings up to date
#   install.sh --remove   takes it away
set -eu

fail() {
  echo "install.sh: $1" >&2
  exit 1
}

here=$(dirname "$0")
traces=/run/egress-agent/run/traces.json
case ${1:-} in
'' | --remove) ;;
*) fail "unknown argument $1: without one it installs, with --remove it takes away" ;;
esac
[ "$(id -u)" = 0 ] || fail "must be run as root"
if [ -d /run/systemd/system ]; then
  init=systemd
elif command -v rc-update >/dev/null; then
  init=openrc
else
  fail "neither systemd nor OpenRC starts this node's services"
fi

if [ "${1:-}" = --remove ]; then
  case $init in
  systemd) [ ! -e /etc/systemd/system/egress-hold.service ] || systemctl disable egress-hold.service ;;
  openrc) [ ! -e /etc/init.d/egress-hold ] || rc-update del egress-hold default ;;
  esac
  rm -f /usr/local/sbin/egress-agent /etc/systemd/system/egress-hold.service /etc/init.d/egress-hold
  rm -f /etc/egress-agent/hold.yaml /etc/egress-agent/make-cgroup
  # Somebody else may have put something there.
  rmdir /etc/egress-agent 2>/dev/null || true
  [ $init != systemd ] || systemctl daemon-reload
  exit 0
fi

# What the agent has noted of itself, a line for each key.
noted() {
  sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\).*/\1/p" "$traces"
}

[ -e "$traces" ] || fail "no agent runs on this node: there is no $traces"
agent=$(noted pid)
[ -e "/proc/$agent/exe" ] || fail "the agent of $traces does not run (process $agent)"
# Below the mount, wherever the agent's container has that.
root=$(sed -n '/^[^ ]* [^ ]* cgroup2 /{s/^[^ ]* \([^ ]*\) .*/\1/p;q;}' /proc/mounts)
cgroup=$(noted cgroup)
below=${cgroup#*"$root"}
[ -d "$root$below" ] || below=/$(basename "$cgroup")
[ -d "$root$below" ] || fail "the agent's cgroup $cgroup is not below $root"

# The very program that the node's agent runs.
install -D -m 755 "/proc/$agent/exe" /usr/local/sbin/egress-agent
mkdir -p /etc/egress-agent
# `internal` is the node's owner's to change, and stays.
[ -e /etc/egress-agent/hold.yaml ] || install -m 644 "$here/hold.yaml" /etc/egress-agent/hold.yaml
sed -i "s|^cgroup: .*|cgroup: $below|" /etc/egress-agent/hold.yaml
install -m 755 "$here/make-cgroup" /etc/egress-agent/make-cgroup
case $init in
systemd)
  install -m 644 "$here/egress-hold.service" /etc/systemd/system/egress-hold.service
  systemctl daemon-reload
  systemctl enable egress-hold.service
  ;;
openrc)
  install -m 755 "$here/egress-hold.openrc" /etc/init.d/egress-hold
  rc-update add egress-hold default
  ;;
esac
echo "installed; check \`internal\` in /etc/egress-agent/hold.yaml"
