"""oneDNN from the wheels of this environment, in the place where Jittor looks before it downloads one."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path

# Below Jittor's home: where Jittor 1.3.11 looks (jittor/compile_extern.py, install_mkl).
FOLDER = Path(".cache/jittor/mkl/dnnl_lnx_2.2.0_cpu_gomp")
# link in that folder -> (wheel, the file in it to link to; for `include`, the folder of that file)
PARTS = {
    "include": ("onednn-devel-cpu-gomp", "dnnl.hpp"),
    "lib/libmkldnn.so": ("onednn-cpu-gomp", "libdnnl.so.2"),
    "lib/libdnnl.so.2": ("onednn-cpu-gomp", "libdnnl.so.2"),
}


def link(home: Path) -> None:
    """Link the oneDNN of this environment's wheels into `FOLDER` of Jittor's home.

    Valid links stay. A link whose target is gone (a deleted environment) is replaced. Each link is renamed into place,
    so several processes can start at the same time. Without the wheels, which exist for Linux on x86-64, nothing is
    done and Jittor downloads its own.
    """
    for name, (package, marker) in PARTS.items():
        place = home / FOLDER / name
        if place.exists():
            continue
        target = file_of(package, marker)
        if target is None:
            return
        if name == "include":
            target = target.parent
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mktemp(prefix=".link", dir=place.parent))
        temporary.symlink_to(target)
        temporary.replace(place)


def file_of(package: str, name: str) -> Path | None:
    """The path of the file `name` in the installed `package`; None if it has no such file."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(file.locate()).resolve()
        if file.name == name and path.is_file():
            return path
    return None
