"""Compile operators that `nvcc` left, with the real nvcc, many in one translation unit: compile.py LIBRARY

LIBRARY is one of them; all that wait in its folder are compiled. An operator's source defines jittor::XOp::jit_run().
In a unit, operator number 7 defines jittor::XOp::jit_run_7(), a method that the class gets while its header is read,
and standin_run_7(), which says what the operator may use (operator.h), and calls it. The functions of the operator's
file, such as its kernels, get the same number. With $STANDIN_COMPUTE=1, what nvcc made of the kernels is translated for
the CPU (ptx.py).
"""

import math
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ptx

PER_UNIT = 16
HERE = Path(__file__).resolve().parent
DEFINE = re.compile(r"^\s*#\s*define\s+(\w+)", re.MULTILINE)
INCLUDE = re.compile(r"^\s*#\s*include.*$", re.MULTILINE)
# Functions of the file: kernels, and a helper that Jittor writes into most sources.
FUNCTION = re.compile(r"(?:__global__[^;{(]*?|^\s*inline static \w+ )(\w+)\s*\(", re.MULTILINE)
# How Jittor names the kernels of an operator that it fuses, and how it says of which operators it consists.
JITTORS = re.compile(r"^func_[0-9a-f]+(?=_\d+$)")
OPERATOR = re.compile(r"^#define op\d+_(?:OP (\w+)|(?!binary|unary)([a-z]\w+) ?$)", re.MULTILINE)
# In PTX: a kernel with its parameters and launch bounds, and the type and length of a parameter.
ENTRY = re.compile(r"\.entry (\w+)\(([^)]*)\)(?:\s*\.maxntid (\d+), (\d+), (\d+))?")
PARAMETER = re.compile(r"\.param (?:\.align \d+ )?\.[busf](\d+)[^,\[]*(?:\[(\d+)\])?")
NAME = re.compile(r"void (?:jittor::)?(\w+)::jit_run\(\)")
RUN = """extern "C" void standin_run_{i}(jittor::{name}* op) {{
    standin_begin(op);
    op->jit_run_{i}();
    standin_end();
}}"""


def unit(sources: list[str]) -> str:
    """One source of many operators."""
    methods = "".join(f"; void jit_run_{i}()" for i in range(len(sources))).removesuffix("()")
    includes = list(dict.fromkeys(line.strip() for text in sources for line in INCLUDE.findall(text)))
    parts = ["#define JIT 1", "#define JIT_cuda 1", f"#define jit_run jit_run(){methods}", *includes]
    parts += [f'#include "{HERE / "operator.h"}"', "#undef jit_run"]
    for i, text in enumerate(sources):
        text = INCLUDE.sub("", text)
        renamed = [*dict.fromkeys(FUNCTION.findall(text)), "jit_run"]
        operators = "_".join(dict.fromkeys(word or name for word, name in OPERATOR.findall(text)))
        parts += [f"#define {name} {JITTORS.sub(operators, name)}_{i}" for name in renamed]
        parts += [text, *(f"#undef {name}" for name in dict.fromkeys([*DEFINE.findall(text), *renamed]))]
        parts += ["#define JIT 1", "#define JIT_cuda 1", RUN.format(i=i, name=NAME.search(text)[1])]
    return "\n".join(parts) + "\n"


def note_kernels(library: Path, ptxas: str) -> None:
    """Write LIBRARY.kernels: what its kernels need, from LIBRARY.ptx and from what `ptxas -v` said."""
    resources = re.findall(r"Compiling entry function '(\S+)'.*?Used (\d+) registers([^\n]*)", ptxas, re.DOTALL)
    entries = {name: (text, bounds) for name, text, *bounds in ENTRY.findall(Path(f"{library}.ptx").read_text())}
    with Path(f"{library}.kernels").open("w") as file:
        for name, registers, rest in resources:
            text, bounds = entries[name]
            threads = math.prod(map(int, bounds)) if bounds[0] else 1024
            shared = re.search(r"(\d+) bytes smem", rest)
            sizes = [int(bits) // 8 * int(length or 1) for bits, length in PARAMETER.findall(text)]
            print(name, registers, shared[1] if shared else 0, threads, *sizes, file=file)


def compile_unit(number: int, libraries: list[Path]) -> None:
    """Compile the operators of `libraries` together; next to each, note where its run function is."""
    arguments = Path(f"{libraries[0]}.command").read_text().split("\n")
    own = next(a for a in arguments if a.endswith("_op.cc"))
    sources = [library.with_suffix(".cc").read_text() for library in libraries]
    target = libraries[0].parent / f"unit{number}"
    target.with_suffix(".cc").write_text(unit(sources))
    replaced = {own: f"{target}.cc", str(libraries[0]): f"{target}.so"}
    words = [replaced.get(a, a) for a in arguments]
    with tempfile.TemporaryDirectory(dir=target.parent) as keep:
        nvcc = [os.environ["STANDIN_NVCC"], *words, "-Xptxas", "-v", "--keep", "--keep-dir", keep]
        done = subprocess.run(nvcc, capture_output=True, text=True)
        if done.returncode:
            for library in libraries:  # or they would wait on, and fail again when the sources have been mended
                library.unlink()
                Path(f"{library}.command").unlink()
            sys.exit(f"{target}.cc: {done.stdout}{done.stderr}")
        Path(keep, f"{target.name}.ptx").rename(f"{target}.so.ptx")
    note_kernels(Path(f"{target}.so"), done.stderr)
    for i, library in enumerate(libraries):
        Path(f"{library}.compiled").write_text(f"{target}.so standin_run_{i}\n")


def main() -> None:
    folder = Path(sys.argv[1]).parent
    waiting = sorted(
        p for p in folder.glob("*_op.so") if Path(f"{p}.command").exists() and not Path(f"{p}.compiled").exists()
    )
    # Operators of cuBLAS and cuRAND need other flags and headers, in an order of their own.
    groups: dict[tuple[str, ...], list[Path]] = {}
    for library in waiting:
        flags = [word for word in Path(f"{library}.command").read_text().split("\n") if word.startswith(("-I", "-l"))]
        groups.setdefault(tuple(flags), []).append(library)
    first = len(list(folder.glob("unit*[0-9].cc")))
    units = [group[i : i + PER_UNIT] for group in groups.values() for i in range(0, len(group), PER_UNIT)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_unit, range(first, first + len(units)), units))
        if os.environ.get("STANDIN_COMPUTE") == "1":
            waiting = [path for path in sorted(folder.glob("unit*.ptx")) if not path.with_suffix(".cpu.so").exists()]
            list(pool.map(ptx.compile_for_cpu, waiting))


if __name__ == "__main__":
    main()
