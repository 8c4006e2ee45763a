#!/bin/sh
# install.sh PURPOSE PACKAGE...
#
# Installs Debian packages where that is possible: as root, where there is apt-get. Elsewhere it says what is missing and what for.
# Its exit code is 0 where every package has been installed.
set -u
purpose=$1
shift

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
	echo "missing for $purpose: $*" >&2
	echo "hint: on Debian and Ubuntu: sudo apt-get install --no-install-recommends $*" >&2
	exit 1
fi

apt() {
	DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" </dev/null
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "installing for $purpose: $*"

# A fresh machine has no package lists, and an old list names files that are gone: either is seen by the first attempt.
apt install --no-install-recommends "$@" >"$log" 2>&1 && exit 0
apt update >>"$log" 2>&1
apt install --no-install-recommends "$@" >>"$log" 2>&1 && exit 0

# One package that this release does not have must not keep the others away.
failed=
for package; do
	apt install --no-install-recommends "$package" >>"$log" 2>&1 || failed="$failed $package"
done
[ -z "$failed" ] && exit 0
tail -n 20 "$log" >&2
echo "not installed:$failed" >&2
exit 1
