#!/usr/bin/env bash
# Do the README's commands work where nothing is installed? Make a minimal Debian in a temporary folder with the packages
# that the README names, clone this repository into it at HEAD, and run make there as a user with an empty home.
#     sudo bash tools/bare_system.sh SUITE [TARGET...]     for example: trixie demo test (the default targets)
# It needs root, debootstrap, git and 4 GB in /tmp (or $TMPDIR). Debian's packages come from apt's mirror, Python's from
# where pip of this machine is configured to look: $PIP_*, /etc/pip.conf, /etc/xdg/pip, and folders of wheels below /opt.
# Exit code 1: make failed in it. Exit code 2: it could not be made; the last line says why.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

# Make a Debian $2 in the folder $1/system, with this repository.
make_system() {
    system=$1/system suite=$2
    packages=$(sed -n 's/.*apt install \(g++ [^`]*\)`.*/\1/p' README.md | tr ' ' ,)
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' | sed -n 1p)
    mkdir -p "$system/etc/dpkg/dpkg.cfg.d"
    echo force-unsafe-io >"$system/etc/dpkg/dpkg.cfg.d/temporary" # do not wait for the disk after each file
    echo "Making a minimal Debian $suite with $packages"
    TIMEFORMAT="bare Debian $suite, made: %0R s (processor: %0U s, system: %0S s)"
    time debootstrap --variant=minbase --include="$packages" "$suite" "$system" $mirror >"$1/log" 2>&1 || {
        tail -n 5 "$1/log" >&2
        fail "debootstrap cannot make a Debian $suite here; the lines above say why"
    }
    for path in /etc/hosts /etc/pip.conf /etc/xdg/pip /etc/ssl/certs/ca-certificates.crt; do
        [ ! -e $path ] || cp -rL --parents $path "$system"
    done
    chroot "$system" useradd --create-home --skel /nonexistent film
    git clone --quiet --no-hardlinks . "$system/home/film/FILM"
    chroot "$system" chown -R film: /home/film
}

# Run make for each target in the Debian $2 in the folder $1/system, and print the times.
run_targets() {
    system=$1/system suite=$2
    shift 2
    mount -t proc proc "$system/proc"
    mount --rbind /sys "$system/sys"
    mount --rbind /dev "$system/dev"
    mount --bind -o ro /opt "$system/opt"
    mapfile -t kept < <(env | grep -E '^(PIP|OPENBLAS)_|^[a-z]+_proxy=')
    for target; do
        TIMEFORMAT="bare Debian $suite, make $target: %0R s (processor: %0U s, system: %0S s)"
        time chroot --userspec=film "$system" env -i "${kept[@]}" HOME=/home/film LANG=C.UTF-8 PATH=/usr/bin:/bin \
            make -C /home/film/FILM "$target" || exit 1
    done
}

if [ "${1:-}" = --inside ]; then
    shift
    make_system "$1" "$2"
    run_targets "$@"
    exit
fi

[ $# -gt 0 ] || fail "expected a suite: bash tools/bare_system.sh SUITE [TARGET...], for example trixie demo"
[ "$(id -u)" = 0 ] || fail "tools/bare_system.sh needs root: it mounts /proc and changes the root folder (use sudo)"
for tool in debootstrap git; do
    command -v $tool >/dev/null || fail "$tool: not installed (Debian, Ubuntu: apt install $tool)"
done
unshare --mount --pid --fork true 2>/dev/null || fail "mounting is not allowed here, not even to root (a container?)"
[ $# -gt 1 ] || set -- "$1" demo test

# The rest runs in namespaces of its own: its mounts and processes end with it, however it ends. So nothing is mounted
# in the folder when it is deleted.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
unshare --mount --pid --fork --kill-child bash tools/bare_system.sh --inside "$folder" "$@"
