#!/bin/sh
# get_toolkit.sh 11|12 FOLDER: nvcc 11.8 or 12.4 with the headers that the dry run needs, in the new folder FOLDER.
#
# The programs are from Debian's package nvidia-cuda-toolkit (non-free), most headers from NVIDIA's wheels, because
# Debian has them in a package of a gigabyte. Nothing is installed. Needs apt, pip and unzip, and 500 MB meanwhile.
set -eu

case ${1:-} in
11) suite=bookworm nvcc=11.8.89 runtime=11.8.89 ;;
12) suite=trixie nvcc=12.4.131 runtime=12.4.127 ;;
*) sed -n '2s/^# //p' "$0" >&2 && exit 2 ;;
esac
mkdir "$2"
cd "$2"
mkdir -p apt/lists/partial wheels bin nvvm lib64

# apt with lists of its own: the suite need not be the one of this system
site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Component: main' | head -1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $site $suite main non-free" >apt/sources.list
cat >apt/apt.conf <<END
Dir::Etc::SourceList "$PWD/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$PWD/apt/lists";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
END
export APT_CONFIG="$PWD/apt/apt.conf"
apt-get -qq update
(cd apt && apt-get -qq download nvidia-cuda-toolkit libcu++-dev)
for package in apt/*.deb; do dpkg -x "$package" apt/root; done
python3 -m pip download -qq --no-deps -d wheels "nvidia-cuda-nvcc-cu$1==$nvcc" "nvidia-cuda-runtime-cu$1==$runtime"
for wheel in wheels/*.whl; do unzip -qo "$wheel" -d wheels; done

tools=apt/root/usr/lib/nvidia-cuda-toolkit
mv "$tools/bin/nvcc" "$tools/bin/cicc" "$tools/bin/crt" bin/
for name in bin2c cudafe++ fatbinary nvlink ptxas; do mv "apt/root/usr/bin/$name" bin/; done
mv "$tools/libdevice" nvvm/
cp -r apt/root/usr/include wheels/nvidia/*/include .
cat >bin/nvcc.profile <<'END'
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"
END
ar rc lib64/libcudadevrt.a # the linker asks for it, and nothing uses it
rm -r apt wheels
bin/nvcc --version
