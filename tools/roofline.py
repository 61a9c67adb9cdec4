"""How long an image and a training step should take on a GPU, from the bytes that they move and their arithmetic.

    python -m pytest -m slow tests/cuda               # lists the launches of ours (tests/cuda/README.md)
    python -m tools.roofline                          # print the tables
    python -m tools.roofline --page docs/gpu.md       # replace those in the page

The roofline model (Williams et al. 2009): a launch takes the longer of its bytes over the bandwidth of the GPU's memory
and its arithmetic over the rate of the GPU. It reads each of its arrays from memory once, and writes it once.
Optionally, no launch takes less than `LAUNCH`. Real kernels do not reach these limits: the model says what is left, and
which launches are worth improving.

Launches of ours are those that the stand-in of tests/cuda saw. Their arrays are the allocations to which their
arguments point, so a kernel that needs only a part of an array counts all of it. Launches of PyTorch are the operators
that its dispatcher sees. Their arrays are the inputs and outputs; some operators make several launches, which move
more. Copies are left out. Arithmetic is counted for matrix products and convolutions: nothing else comes near the rate
of a GPU.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from net.shapes import STAGE_SIZE, TEXT_SHAPE
from tools import markdown
from utils.runtime import jittor_tree
from utils.runtime.cli import path_type, run_command
from utils.runtime.errors import UserError, missing

COMMAND = "python -m tools.roofline --page docs/gpu.md"
LAUNCH = 4e-6  # seconds; between 3 and 5 microseconds are usual
SLOWEST = 10


class Gpu(NamedTuple):
    """What bounds a GPU: bytes per second of its memory, and float32 operations per second without tensor cores."""

    name: str
    bandwidth: float
    rate: float


# NVIDIA H100 datasheet, SXM; NVIDIA Ampere GA102 whitepaper, table 9.
GPUS = (Gpu("H100 SXM", 3.35e12, 67e12), Gpu("RTX 3090", 936e9, 35.6e12))


class Launch(NamedTuple):
    """A kernel with the sizes of its arrays in bytes, and the operations that are counted."""

    kernel: str
    arrays: tuple[int, ...]
    flop: float = 0

    def seconds(self, gpu: Gpu, least: float = 0.0) -> float:
        """How long it takes, but at least `least`."""
        return max(sum(self.arrays) / gpu.bandwidth, self.flop / gpu.rate, least)


Launches = Counter[Launch]


def seconds(launches: Launches, gpu: Gpu, least: float = 0.0) -> float:
    """How long they take, one after the other."""
    return sum(count * launch.seconds(gpu, least) for launch, count in launches.items())


def read_report(file: Path) -> dict[str, list[str]]:
    """What the stand-in counted (standin_report in tests/cuda/standin/cudart.cc): name -> its values, one per line."""
    report: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        name, _, value = line.partition("\t")
        report.setdefault(name, []).append(value)
    return report


def ours(report: Mapping[str, Sequence[str]]) -> Launches:
    """The launches that the stand-in counted: what tests/cuda/standin/cudart.cc and cublas.cc report."""
    launches: Launches = Counter()
    for name, values in report.items():
        words = name.split()
        if words[0] == "launch":
            kernel, arrays = kernel_name(words[1]), tuple(map(int, words[2:]))
            launches[Launch(kernel, arrays, convolution_flop(kernel, arrays))] += int(values[0])
        elif words[0] in ("gemm", "sgemm"):
            m, n, k, batch = map(int, words[3::2])
            arrays = tuple(4 * batch * size for size in (m * k, k * n, m * n))
            launches[Launch(f"matrix product {m}x{k}x{n}", arrays, 2 * m * n * k * batch)] += int(values[0])
    return launches


def kernel_name(mangled: str) -> str:
    """The last name in a mangled one, without the numbers after it: what our kernel or Jittor's operator computes."""
    names, at = [], 0
    mangled = re.sub(r"L[a-z]\d+E", "", mangled)  # numbers among the template arguments
    while found := re.compile(r"\d+").search(mangled, at):
        length = int(found[0])
        at = found.end() + (length if length > 2 else 0)
        names += [mangled[found.end() : at]] if length > 2 else []
    return re.sub(r"(_\d+)+$", "", names[-1])


def convolution_flop(kernel: str, arrays: Sequence[int]) -> float:
    """The operations of our 3x3 convolutions (net/kernels/cuda), forward or backward; 0 for other kernels.

    A dense one has arrays of b i p, 9 i o and b o p numbers, p pixels each, and multiplies 9 b i o p times: the root of
    9 times the product of these three. A depthwise one multiplies each number of its largest array nine times.
    """
    numbers = [size / 4 for size in arrays]
    if kernel.startswith("Conv3x3"):
        return 2 * math.sqrt(9 * math.prod([*numbers[:2], numbers[-1]]))
    return 2 * 9 * max(numbers) if kernel.startswith("Depthwise") else 0


def pytorch_eager(batch: int, training: bool) -> Launches:
    """The operators of an image batch in PyTorch's eager mode, or of a training step with all losses and Adam."""
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(missing("torch")) from None
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    from tools.torch_film import TwinNet, fusion_loss, lp_ssim_loss

    launches: Launches = Counter()

    def flop(function: torch._ops.OpOverload, arguments: tuple, options: dict, result: object) -> float:
        if function.overloadpacket == torch.ops.aten.convolution_backward:  # torch counts groups as one
            gradient, weight, needed = arguments[0], arguments[2], arguments[-1]
            rows = gradient.numel() if not arguments[7] else arguments[1].numel()
            return 2 * rows * weight[0].numel() * sum(needed[:2])
        count = flop_registry.get(function.overloadpacket)
        return count(*arguments, **options, out_val=result) if count else 0

    class Recorder(TorchDispatchMode):
        """Counts the operators that compute: not views, nor what only reserves memory, nor what stays on the CPU."""

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            schema = function._schema
            views = not schema.is_mutable and all(each.alias_info for each in schema.returns)
            tensors = {id(t): t for t in tree_leaves((arguments, options, result)) if isinstance(t, Tensor)}.values()
            if not views and not re.search("empty|_unsafe_view", schema.name) and any(t.is_meta for t in tensors):
                arrays = tuple(min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors)
                name = schema.name.removeprefix("aten::")
                launches[Launch(name, arrays, flop(function, arguments, options or {}, result))] += 1
            return result

    # Tensors without data: nothing is computed.
    net = TwinNet().to("meta")
    a, b = torch.empty(2, batch, 1, *STAGE_SIZE, device="meta")
    text = torch.empty(batch, *TEXT_SHAPE, device="meta")
    if not training:
        with torch.no_grad(), Recorder():
            net.eval()(a, b, text)
        return launches
    adam = torch.optim.Adam(net.parameters(), foreach=True)
    for _ in range(2):  # the first step also makes the moments
        launches.clear()
        with Recorder():
            fused = net(a, b, text)
            loss = fusion_loss(a, b, fused, 20)[0] + lp_ssim_loss(a, fused)[0] + lp_ssim_loss(b, fused)[0]
            adam.zero_grad()
            loss.backward()
            adam.step()
    return launches


def tables(cases: Mapping[str, Launches], ours: Sequence[str]) -> str:
    """The table of the cases, and for each case named in `ours` that of the kernels that take longest on GPUS[0]."""
    heads = ["", "launches", "GB", "GFLOP"]
    heads += [f"{gpu.name}, ms{note}" for gpu in GPUS for note in ("", f", each launch {LAUNCH * 1e6:.0f} µs or more")]
    rows = []
    for title, launches in cases.items():
        moved = sum(count * sum(launch.arrays) for launch, count in launches.items()) / 1e9
        flop = sum(count * launch.flop for launch, count in launches.items()) / 1e9
        times = [1e3 * seconds(launches, gpu, least) for gpu in GPUS for least in (0, LAUNCH)]
        rows.append([title, f"{launches.total():,}", f"{moved:.1f}", f"{flop:,.0f}", *(f"{t:.1f}" for t in times)])
    return "\n\n".join([markdown.table(heads, rows), *(_slowest(title, cases[title]) for title in ours)])


def _slowest(title: str, launches: Launches) -> str:
    """The table of the kernels that take longest."""
    kernels: dict[str, Launches] = {}
    for launch, count in launches.items():
        kernels.setdefault(launch.kernel, Counter())[launch] += count
    gpu, whole = GPUS[0], seconds(launches, GPUS[0])
    order = sorted(kernels.items(), key=lambda item: -seconds(item[1], gpu))[:SLOWEST]
    rows = [
        [f"`{name}`", str(each.total()), f"{1e3 * seconds(each, gpu):.2f}", f"{seconds(each, gpu) / whole:.0%}"]
        for name, each in order
    ]
    return markdown.table([f"kernel ({title})", "launches", f"{gpu.name}, ms", "of the whole"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.roofline", description=__doc__.splitlines()[0])
    add = parser.add_argument
    default = jittor_tree.cache_folder() / "film_standin" / "counts"
    add("folder", type=path_type, nargs="?", default=default, help="what tests/cuda counted (default: %(default)s)")
    add("--page", type=path_type, help="replace the tables in this page (default: print them)")
    args = parser.parse_args(argv)
    cases, titles = {}, []
    for title, part, batch in (("an image", "forward", 1), ("a training step", "training", 2)):
        report = args.folder / f"{part}.tsv"
        if not report.is_file():
            raise UserError(f"{report}: missing; `python -m pytest -m slow tests/cuda` makes it, where nvcc is")
        titles.append(f"{title}, ours")
        cases[titles[-1]] = ours(read_report(report))
        cases[f"{title}, PyTorch eager"] = pytorch_eager(batch, part == "training")
    markdown.show(tables(cases, titles), args.page, COMMAND)


if __name__ == "__main__":
    sys.exit(run_command(main))
