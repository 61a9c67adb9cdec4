#!/bin/sh
# Make the virtual environment FOLDER with PYTHON, or with the newest supported Python that has all it needs.
#     sh tools/make_venv.sh FOLDER [PYTHON]
# If something is missing, it prints one line that says what to do, and exits with code 2.
supported="3.14 3.13 3.12 3.11"

fail() {
    echo "error: $1" >&2
    exit 2
}

case $(uname -s) in
Linux) ;;
Darwin) fail "macOS is not supported; use Linux, or a Linux container" ;;
*) fail "$(uname -s) is not supported; on Windows, use WSL 2: wsl --install, then the same commands in it" ;;
esac
compiler=${cc_path:-g++}
command -v "$compiler" >/dev/null ||
    fail "$compiler: no C++ compiler, which Jittor needs (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: conda install gxx)"

# Print why the Python $1 cannot be used, nothing if it can, "absent" if there is none.
problem_of() {
    "$1" - "$supported" 2>/dev/null <<'PYTHON' || echo absent
import importlib.util, os, platform, sys, sysconfig

version = "%d.%d" % sys.version_info[:2]
debian = "Debian, Ubuntu: apt install python%s-" % version
if version not in sys.argv[1].split() or platform.python_implementation() != "CPython":
    print("is %s %s" % (platform.python_implementation(), version))
elif sysconfig.get_config_var("Py_GIL_DISABLED"):
    print("is a free-threaded build")
elif not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
    print("has no venv (%svenv)" % debian)
elif not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    print("has no headers, which Jittor needs (%sdev; Fedora: dnf install python%s-devel)" % (debian, version))
PYTHON
}

first=
for python in ${2:-$(for version in $supported; do echo "python$version"; done) python3}; do
    problem=$(problem_of "$python")
    case $problem in
    "") exec "$python" -m venv "$1" ;;
    absent) [ -z "$2" ] || fail "$python: no such Python" ;;
    # The system's python3 may be another version; ignore it then.
    is*) [ -z "$2" ] || fail "$python $problem; supported: Python $supported" ;;
    *) first=${first:-"$python $problem"} ;;
    esac
done
fail "${first:-"no Python of $supported found (Debian, Ubuntu: apt install python3 python3-venv python3-dev; Fedora: dnf install python3-devel; conda: conda create -n film python=3.13, conda activate film; uv: uv python install 3.13)"}"
