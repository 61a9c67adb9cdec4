"""Translate the PTX that nvcc made of kernels to C++, and compile that for the CPU: ptx.py NAME.ptx...

Each NAME.ptx becomes NAME.cpu.cc and NAME.cpu.so. An instruction is a call of the function with its name in ptx.h:

    @%p1 mul.lo.s32 %r3, %r1, -4;   ->   if (P1.bits) R3 = ptx::mul_lo<s32>(R1, -4);

A line of PTX becomes a line of C++. What is not known stays PTX, or calls a function that ptx.h does not have: g++
refuses it, and the error shows the line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O1", "-march=native", "-fPIC", "-shared", "-w", "-fmax-errors=1"]
# Integers overflow and NaN compares as in PTX, a product and a sum are not fused, and `and` is a name.
FLAGS += ["-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-operator-names", f"-I{HERE}"]

TYPES = {f"{kind}{bits}" for kind in "busf" for bits in (8, 16, 32, 64)} | {"pred"}
SPACES = {"global", "shared", "local", "param"}
VECTORS = {"v2", "v4"}
# Words that change nothing here: C++ rounds to nearest.
IGNORED = {"rn", "nc", "sync", "uni"}
NO_RESULT = {"st", "red", "bar"}
WAIT = {"bar", "shfl"}
SEVERAL_RESULTS = {"ld", "shfl"}
# Lines that say nothing about what is computed. compile.py reads maxntid.
SKIPPED = re.compile(r"[()]?|\.(?:version|target|address_size|maxntid|pragma)\s.*")


class Kernel:
    """A kernel while its lines are read."""

    def __init__(self, name: str) -> None:
        self.name, self.waits = name, False
        self.shared: list[str] = []  # the sizes of the arrays in shared memory
        self.parameters: list[str] = []
        self.symbols: dict[str, str] = {}  # parameters and arrays -> C++ for their address

    def entry(self) -> str:
        return f'{{"{self.name}", {self.name}, {str(self.waits).lower()}, {{{", ".join(self.shared)}}}}}'

    def parameter(self, name: str, size: int) -> None:
        self.symbols[name] = f"t.parameter({len(self.parameters)}, {size})"
        self.parameters.append(name)

    def declaration(self, line: str) -> str:
        """`.reg .b32 %r<3>;`, or an array in shared or local memory."""
        if found := re.match(r"\.reg \.(\w+)\s+%(\w+)(?:<(\d+)>)?;", line):
            kind, name, count = found[1], found[2].upper(), found[3]
            names = [f"{name}{i}" for i in range(int(count))] if count else [name]
            return f"Register<{kind}> {', '.join(names)};"
        if found := re.match(r"\.(shared|local) \.align \d+ \.b8\s+(\w+)\[(\d+)\];", line):
            space, name, size = found.groups()
            if space == "local":
                self.symbols[name] = f"(u64){name}"
                return f"alignas(16) char {name}[{size}]; t.set_local({name}, {size});"
            self.symbols[name] = f"shared_address({len(self.shared)})"
            self.shared.append(size)
            return ""
        return line

    def operand(self, text: str, words: list[str]) -> str:
        """C++ for one or several registers, a number, an array, or `[%rd1+4]`, in an instruction of these words."""
        if text.startswith("["):
            base, _, offset = text.strip("[]").partition("+")
            kind = next((word for word in words if word in TYPES), "")
            if base in self.parameters:
                return f"param<{kind}>(t, {self.parameters.index(base)}, {offset or 0})"
            space = next((word for word in words if word in SPACES), "generic")
            lanes = next((word[1] for word in words if word in VECTORS), 1)
            return f'{space}<{kind}, {lanes}>(t, "{".".join(words)}", {self.operand(base, words)}, {offset or 0})'
        if text.startswith("{"):
            return ", ".join(self.operand(part.strip(), words) for part in text.strip("{}").split(","))
        if text.startswith("%"):
            return f"t.{text[1:]}" if "." in text else text.replace("%", "").upper()
        if found := re.fullmatch(r"0([fd])([0-9A-Fa-f]+)", text):
            return f"Register<b{32 if found[1] == 'f' else 64}>{{0x{found[2]}}}"
        return self.symbols.get(text, text)

    def instruction(self, line: str) -> str:
        found = re.fullmatch(r"(?:@(\S+)\s+)?([\w.:]+)\s*(.*);", line)
        if not found:
            return line
        guard, opcode, rest = found.groups()
        words = opcode.split(".")
        if words[0] == "bra":
            code = f"goto {rest}"
        elif words[0] == "ret":
            code = "return"
        else:
            types = [word for word in words if word in TYPES]
            name = "_".join(word for word in words if word not in TYPES | SPACES | VECTORS | IGNORED)
            texts = re.split(r",\s*(?![^{]*})", rest)
            if re.search("[{|]", texts[0]) and words[0] not in SEVERAL_RESULTS:
                return line
            if words[0] == "ld" and texts[0].startswith("{"):
                texts.reverse()
            operands = [self.operand(text, words) for text in texts]
            # What has a result, has it first.
            target = "" if words[0] in NO_RESULT or texts[-1].startswith("{") else operands.pop(0)
            if words[0] in WAIT:
                self.waits = True
                operands.insert(0, "t")
            template = f"<{', '.join(types)}>" if types else ""
            code = f"ptx::{name}{template}({', '.join(operands)})"
            if target:
                register, _, predicate = target.partition("|")
                code = f"{register} = {code}" + (f", {predicate} = t.in_range" if predicate else "")
        return f"if ({guard.replace('%', '').upper()}.bits) {code};" if guard else f"{code};"


def translate(text: str, file: str) -> str:
    """PTX as C++ for ptx.h."""
    kernels: list[Kernel] = []
    lines = ['#include "ptx.h"', f'#line 1 "{file}"']
    for raw in text.splitlines():
        line = raw.partition("//")[0].strip()
        code = ""
        if found := re.match(r"(?:\.visible )?\.entry (\w+)\(", line):
            kernels.append(Kernel(found[1]))
            code = f"static void {found[1]}(Thread& t)"
        elif line in ("{", "}"):
            code = line
        elif found := re.match(r"\.param .*?\.[busf](\d+)\s+(\w+)(?:\[(\d+)\])?,?$", line):
            kernels[-1].parameter(found[2], int(found[1]) // 8 * int(found[3] or 1))
        elif kernels and line.startswith((".reg", ".shared", ".local")):
            code = kernels[-1].declaration(line)
        elif found := re.match(r"(\$\w+):", line):
            code = f"{found[1]}:;"
        elif kernels and re.match("[@a-z]", line):
            code = kernels[-1].instruction(line)
        elif not SKIPPED.fullmatch(line):
            code = line
        lines.append(code)
    table = ", ".join([*(kernel.entry() for kernel in kernels), "{}"])
    return "\n".join([*lines, f'extern "C" const Translated standin_kernels[] = {{{table}}};']) + "\n"


def compile_for_cpu(ptx: Path) -> None:
    source, library = ptx.with_suffix(".cpu.cc"), ptx.with_suffix(".cpu.so")
    text = ptx.read_text()
    source.write_text(translate(text, ptx.name))
    done = subprocess.run(["g++", *FLAGS, source, "-o", library], capture_output=True, text=True)
    if done.returncode:
        found = re.search(rf"{re.escape(ptx.name)}:(\d+):", done.stderr)
        line = text.splitlines()[int(found[1]) - 1].strip() if found else ""
        sys.exit(f"{ptx} is not translated: {line}\n{done.stderr[:4000]}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        compile_for_cpu(Path(name))
