#!/bin/bash
# Installs the Debian packages of tools/packages.txt that are missing. Asks nothing; with nothing missing it
# touches neither the network nor the system.
#
#   bash tools/setup.sh [--check]     --check: only say what is missing (exit status 1 if anything is)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
list=$root/tools/packages.txt

fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

check=0
case "${1-}" in
  '') ;;
  --check) check=1 ;;
  -h | --help)
    sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *)
    printf 'setup: unknown argument %s (see --help)\n' "$1" >&2
    exit 2
    ;;
esac

mapfile -t wanted < <(sed 's/#.*//; s/[[:space:]]//g; /^$/d' "$list")
((${#wanted[@]})) || fail "$list names no packages"
# shellcheck source=/dev/null
system=$(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME-}") || true
command -v apt-get dpkg-query >/dev/null ||
  fail "needs Debian 12: no apt-get on ${system:-this system}. Install what tools/packages.txt names by hand."

declare -A have=()
while read -r package status; do
  [[ $status == installed ]] && have[$package]=1
done < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true)
missing=()
for package in "${wanted[@]}"; do
  [[ ${have[$package]-} ]] || missing+=("$package")
done

if ((${#missing[@]} == 0)); then
  echo "setup: all ${#wanted[@]} packages of tools/packages.txt are installed"
  exit 0
fi
echo "setup: missing ${#missing[@]} of ${#wanted[@]} packages: ${missing[*]}"
((check)) && exit 1

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || fail "must be root to install packages, and there is no sudo: run it as root once"
  as_root=(sudo)
fi
log=$(mktemp /tmp/sherd-setup.XXXXXX.log)
apt=("${as_root[@]}" env LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a
  apt-get -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold -o Acquire::Retries=3 -q -y)

# Says why the last apt-get failed: its own errors, then where the rest of its output is.
fail_apt() {
  local why
  why=$(grep -E '^(E|W):' "$log" | head -n 1) || true
  fail "$1 on ${system:-this system}: offline, or not Debian 12? ${why:+$why }(all of apt's output: $log)"
}

echo "setup: apt-get update"
"${apt[@]}" update >"$log" 2>&1 || fail_apt "apt-get update failed"
new=$("${apt[@]}" -s --no-install-recommends install "${missing[@]}" 2>>"$log" | grep -c '^Inst') ||
  fail_apt "apt-get cannot install ${missing[*]}"
echo "setup: apt-get install: $new packages with what they depend on; this takes minutes"
# etcd-server's service would start at once, on ports that somebody may need: tests start servers of their own.
hide_etcd=''
if [[ " ${missing[*]} " == *' etcd-server '* && -d /etc/systemd/system && ! -e /etc/systemd/system/etcd.service ]]; then
  "${as_root[@]}" ln -s /dev/null /etc/systemd/system/etcd.service && hide_etcd=1
fi
show_etcd() {
  [[ $hide_etcd ]] || return 0
  "${as_root[@]}" rm -f /etc/systemd/system/etcd.service /etc/systemd/system/multi-user.target.wants/etcd.service
  echo "setup: the service of etcd-server is not started, now or at boot: systemctl enable --now etcd"
}
trap show_etcd EXIT
# Each package is fetched, unpacked and set up: three lines of apt-get's, from which a percentage is made.
"${apt[@]}" --no-install-recommends install "${missing[@]}" 2>&1 |
  tee -a "$log" |
  awk -v steps=$((3 * new)) '/^(Get:|Unpacking|Setting up)/ {
    done_steps++
    percent = int(100 * done_steps / steps)
    if (percent >= last + 10 && percent <= 100) { last = percent - percent % 10; print "setup: " last " %"; fflush() }
  }' || fail_apt "apt-get install failed"
rm -f "$log"
echo "setup: installed ${missing[*]}"
