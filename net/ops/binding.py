"""C++ kernels as differentiable operations of Jittor, with arrays and sizes passed by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path

from utils.runtime.jittor_env import jt

KERNELS = Path(__file__).resolve().parents[1] / "kernels"


@cache
def kernel_header(file: str) -> str:
    """The include line of a file in net/kernels. It holds a digest of all files there: Jittor recompiles after edits.

    The files include each other by ``# include``, with a space: Jittor's scanner would search ``#include "x.h"`` in
    its own folders only, and fail.
    """
    path = KERNELS / file
    digest = hashlib.sha1(b"".join(p.read_bytes() for p in sorted(KERNELS.rglob("*.*h")))).hexdigest()
    gpu = "using namespace film::gpu;\n" if path.suffix == ".cuh" else ""
    return f'// {digest}\n#include "{path}"\nusing namespace film;\n{gpu}'


def _parse(dimensions: str) -> list[tuple[int, str]]:
    """The factor and the size of each dimension: "2k h 3" -> (2, "k"), (1, "h"), (3, "")."""
    return [(int(factor or 1), size) for factor, size in re.findall(r"(?=\w)(\d*)([a-z]*)", dimensions)]


class KernelOperation:
    """An operation that kernels compute. A call with its inputs, in order, returns the array `y`.

    The kernels are called by C++ sources, in which arrays and sizes have names: an array ``x`` is a pointer to its
    first element, a size ``c`` a `long`. A source reads the arrays it names that exist when it runs, and fills those
    that do not exist yet. `forward` runs first and fills `y`. The backward sources run in order; they read the gradient
    ``dy`` and fill the gradients of the inputs: ``dx`` is that of ``x``. Jittor runs a source only if something needs
    what it fills, so a gradient that is not always needed should have its own source. The arrays that a backward
    source names are kept from the forward pass.

    Sizes are variables of the sources, so new sizes compile nothing. The name ``out`` is reserved: Jittor has a macro
    ``out``.

    Args:
        file: the header in net/kernels that declares the kernels. A .cuh file is for CUDA; its sources compile for
            the CPU as well.
        inputs: the inputs and their dimensions: ``"b 3c h w"`` names the sizes b, c, h and w; an integer is a factor.
            An input whose name ends in ``?`` may be None; it and its gradient are then null pointers. `int` in place of
            dimensions marks a number that is passed on as a size.
        makes: the other arrays that sources fill, `y` among them, and their dimensions.
        forward: the source of the forward pass.
        backward: the sources of the backward pass.
        setup: C++ that begins each source.
        float64: the arrays of `makes` that are float64; the others are float32.
    """

    def __init__(
        self,
        file: str,
        inputs: Mapping[str, str | type[int]],
        makes: Mapping[str, str],
        forward: str,
        backward: Sequence[str] = (),
        setup: str = "",
        float64: Sequence[str] = (),
    ) -> None:
        self.file, self.float64 = file, float64
        self.optional = {name[:-1] for name in inputs if name.endswith("?")}
        self.parameters = [name.rstrip("?") for name in inputs]
        arrays = {name: d for name, d in zip(self.parameters, inputs.values(), strict=True) if d is not int}
        self.inputs = list(arrays)
        self.numbers = [name for name in self.parameters if name not in arrays]
        gradients = {f"d{name}": dimensions for name, dimensions in (arrays | {"y": makes["y"]}).items()}
        self.layouts = arrays | dict(makes) | gradients
        self.dimensions = {name: _parse(dimensions) for name, dimensions in self.layouts.items()}
        self.forward, *self.backward = (setup + source for source in (forward, *backward))
        self.named = {source: self._names(source) for source in (self.forward, *self.backward)}
        self.kept = {name for source in self.backward for name in self.named[source]}
        self.texts: dict[tuple[str, ...], str] = {}
        self.sizes_of = lru_cache(maxsize=64)(self._sizes_of)

    def __call__(self, *arguments: jt.Var | int | None) -> jt.Var:
        """`y`, or NotImplemented if a required input is None. A ValueError names an array whose shape does not fit."""
        absent = [None] * (len(self.parameters) - len(arguments))
        given = dict(zip(self.parameters, [*arguments, *absent], strict=True))
        if any(value is None and name not in self.optional for name, value in given.items()):
            return NotImplemented
        arrays = [given.pop(name) for name in self.inputs]
        return _Call(self, given)(*arrays)

    def sizes(self, arrays: Mapping[str, jt.Var | None], numbers: Mapping[str, int]) -> dict[str, int]:
        """The value of every size, from the shapes of the inputs. What was found for shapes is kept for a while."""
        shapes = tuple((name, tuple(x.shape)) for name, x in arrays.items() if x is not None)
        return self.sizes_of(shapes, tuple(numbers.items()))

    def _sizes_of(self, shapes: tuple, numbers: tuple) -> dict[str, int]:
        sizes = {"": 1, **dict(numbers)}
        for name, shape in shapes:
            dimensions = self.dimensions[name]
            for (factor, size), length in zip(dimensions, shape, strict=False):
                sizes.setdefault(size, length // factor)
            if len(dimensions) != len(shape) or self.shape(name, sizes) != list(shape):
                raise ValueError(f"{name}: shape {list(shape)} is not {self.layouts[name]!r} with {sizes}")
        return sizes

    def shape(self, name: str, sizes: Mapping[str, int]) -> list[int]:
        """The shape of the array `name`."""
        return [factor * sizes[size] for factor, size in self.dimensions[name]]

    def run(self, source: str, arrays: dict[str, jt.Var | None], sizes: Mapping[str, int]) -> None:
        """Run `source`: it reads some of `arrays`; those that it fills are added."""
        reads = [name for name in self.named[source] if arrays.get(name) is not None]
        fills = [name for name in self.named[source] if name not in arrays]
        key = (source, *reads, *fills)
        if key not in self.texts:
            self.texts[key] = self._declarations(source, reads, fills) + source
        target = {"cpu_header": kernel_header(self.file), "cpu_src": self.texts[key]}
        if self.file.endswith(".cuh"):
            target |= {"cuda_header": target["cpu_header"], "cuda_src": target["cpu_src"]}
        made = jt.code(
            [self.shape(name, sizes) for name in fills],
            ["float64" if name in self.float64 else "float32" for name in fills],
            [arrays[name] for name in reads],
            data={name: float(sizes[name]) for name in self.numbers},
            **target,
        )
        arrays.update(zip(fills, made, strict=True))

    def _names(self, source: str) -> list[str]:
        """The arrays that `source` names; what follows a dot is a member of a structure."""
        words = set(re.findall(r"(?<![\w.])[a-z]\w*", source))
        return [name for name in self.dimensions if name in words]

    def _declarations(self, source: str, reads: Sequence[str], fills: Sequence[str]) -> str:
        """C++ that declares the arrays `source` names and their sizes, from the variables that Jittor declares."""
        variables = {name: f"in{i}" for i, name in enumerate(reads)} | {name: f"out{i}" for i, name in enumerate(fills)}
        lines = {name: f'const long {name} = data["{name}"];\n' for name in self.numbers}
        for name in self.named[source]:
            if name not in variables:
                lines[name] = f"float* {name} = nullptr;\n"
                continue
            lines[name] = f"{'const ' * (name in reads)}auto* {name} = {variables[name]}_p;\n"
            for axis, (factor, size) in enumerate(self.dimensions[name]):
                if size:
                    lines.setdefault(size, f"const long {size} = {variables[name]}_shape{axis} / {factor};\n")
        return "".join(lines.values())


_settings = {"differentiated once": False}


@contextmanager
def differentiated_once() -> Iterator[None]:
    """Kernel operations called here give up what they keep for the backward pass as soon as that is built.

    Otherwise they keep it until Jittor has run the complete graph.
    """
    _settings["differentiated once"] = True
    try:
        yield
    finally:
        _settings["differentiated once"] = False


class _Call(jt.Function):
    """One call of a KernelOperation."""

    def __init__(self, operation: KernelOperation, numbers: Mapping[str, int]) -> None:
        self.operation, self.numbers = operation, numbers
        self.once = _settings["differentiated once"]

    def execute(self, *inputs: jt.Var | None) -> jt.Var:
        operation = self.operation
        arrays = dict(zip(operation.inputs, inputs, strict=True))
        self.sizes = operation.sizes(arrays, self.numbers)
        operation.run(operation.forward, arrays, self.sizes)
        self.saved = {name: x for name, x in arrays.items() if name in operation.kept}
        self.saved |= {f"d{name}": None for name, x in arrays.items() if x is None}
        return arrays["y"]

    def grad(self, dy: jt.Var) -> list[jt.Var | None]:
        arrays = self.saved | {"dy": dy}
        if self.once:
            del self.saved
        for source in self.operation.backward:
            self.operation.run(source, arrays, self.sizes)
        return [arrays.get(f"d{name}") for name in self.operation.inputs]
