"""The primitives for which Jittor's own operators are slow on a GPU, as CUDA kernels (`kernels/cuda/*.cuh`).

Each function has the arguments and the result of its namesake in `portable`, which says what it computes; what is not
here is a matrix product (cuBLAS) or element by element, and good as it is. None of them needs cuDNN. Sizes are
variables of the kernels, sums are in float32 and always in the same order. The sources compile for the CPU as well,
where loops stand for the threads: that is how they are tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from net.cpu import KERNELS, kernel_header
from net.portable import nearest_indices
from utils.runtime.jittor_env import jt


def _call(file: str, source: str, inputs: Sequence[jt.Var], shapes: Sequence[Sequence[int]]) -> list[jt.Var]:
    """Run `source` on `inputs` (in0_p, in0_shape0, ...), giving float32 arrays of `shapes` (out0_p, ...)."""
    header = kernel_header(KERNELS / "cuda" / file) + "using namespace film::gpu;\n"
    return jt.code(
        [list(s) for s in shapes],
        ["float32"] * len(shapes),
        list(inputs),
        cuda_header=header,
        cuda_src=source,
        cpu_header=header,
        cpu_src=source,
    )


_PLANE = "const Plane plane{in0_shape2, in0_shape3};\n"


class _DepthwiseConv3x3(jt.Function):
    def execute(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None) -> jt.Var:
        self.saved = x, weight
        self.has_bias = bias is not None
        bias_pointer = "in2_p" if self.has_bias else "nullptr"
        (y,) = _call(
            "conv.cuh",
            _PLANE
            + f"for_each(Depthwise{{plane, in0_shape1, in0_p, in1_p, {bias_pointer}, false, out0_p}}, out0->num);",
            (x, weight, bias) if self.has_bias else (x, weight),
            [x.shape],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var | None, ...]:
        x, weight = self.saved
        channels = x.shape[1]
        (dx,) = _call(
            "conv.cuh",
            _PLANE + "for_each(Depthwise{plane, in0_shape1, in0_p, in1_p, nullptr, true, out0_p}, out0->num);",
            (dout, weight),
            [x.shape],
        )
        (sums,) = _call(
            "conv.cuh",
            _PLANE + "sum_each<10>(DepthwiseWeights{plane, in0_shape1, in0_p, in1_p}, in0_shape1, "
            "in0_shape0 * plane.size(), out0_p);",
            (x, dout),
            [(channels, 10)],
        )
        return dx, sums[:, :9].reshape(weight.shape), sums[:, 9] if self.has_bias else None


def depthwise_conv3x3(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None) -> jt.Var:
    return _DepthwiseConv3x3.apply(x, weight, bias)


class _Conv3x3(jt.Function):
    def execute(self, x: jt.Var, weight: jt.Var) -> jt.Var:
        self.saved = x, weight
        (y,) = _call(
            "conv.cuh",
            _PLANE + "for_each(Conv3x3{plane, in0_shape1, out0_shape1, in0_p, in1_p, false, out0_p}, out0->num);",
            (x, weight),
            [(x.shape[0], weight.shape[0], *x.shape[2:])],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var, jt.Var]:
        x, weight = self.saved
        # Two kernels: what nobody asks for, such as the gradient of the image itself, is never run.
        (dx,) = _call(
            "conv.cuh",
            _PLANE + "for_each(Conv3x3{plane, in0_shape1, out0_shape1, in0_p, in1_p, true, out0_p}, out0->num);",
            (dout, weight),
            [x.shape],
        )
        (dweight,) = _call(
            "conv.cuh",
            _PLANE + "sum_each<9>(Conv3x3Weights{plane, in0_shape1, in1_shape1, in0_p, in1_p}, "
            "in0_shape1 * in1_shape1, in0_shape0 * plane.size(), out0_p);",
            (x, dout),
            [weight.shape],
        )
        return dx, dweight


conv3x3 = _Conv3x3.apply


_PIXELS = "const long plane = in0_shape2 * in0_shape3, pixels = in0_shape0 * plane;\n"


class _ChannelLayerNorm(jt.Function):
    def execute(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None) -> jt.Var:
        self.saved = x, weight
        self.has_bias = bias is not None
        bias_pointer = "in2_p" if self.has_bias else "nullptr"
        (y,) = _call(
            "pixel.cuh",
            _PIXELS + f"for_each(LayerNorm{{in0_shape1, plane, in0_p, in1_p, {bias_pointer}, out0_p}}, pixels);",
            (x, weight, bias) if self.has_bias else (x, weight),
            [x.shape],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var | None, ...]:
        x, weight = self.saved
        batch, channels, height, width = x.shape
        dx, statistics = _call(
            "pixel.cuh",
            _PIXELS + f"for_each(LayerNormBackward{{in0_shape1, plane, pixels, {str(self.has_bias).lower()}, in0_p, "
            "in1_p, in2_p, out0_p, out1_p}, pixels);",
            (x, weight, dout),
            [x.shape, (2, batch, height, width)],
        )
        (sums,) = _call(
            "pixel.cuh",
            _PIXELS + "sum_each<2>(LayerNormWeights{in0_shape1, plane, pixels, in0_p, in1_p, in2_p}, in0_shape1, "
            "pixels, out0_p);",
            (x, dout, statistics),
            [(channels, 2)],
        )
        return dx, sums[:, 0], sums[:, 1] if self.has_bias else None


channel_layer_norm = _ChannelLayerNorm.apply


_HALF = "const long half = in0_shape1 / 2 * in0_shape2 * in0_shape3;\n"


class _GatedGelu(jt.Function):
    def execute(self, x: jt.Var) -> jt.Var:
        self.saved = x
        batch, channels, height, width = x.shape
        (y,) = _call(
            "pixel.cuh",
            _HALF + "for_each(GatedGelu{half, in0_p, out0_p}, out0->num);",
            (x,),
            [(batch, channels // 2, height, width)],
        )
        return y

    def grad(self, dout: jt.Var) -> jt.Var:
        (dx,) = _call(
            "pixel.cuh",
            _HALF + "for_each(GatedGeluBackward{half, in0_p, in1_p, out0_p}, in1->num);",
            (self.saved, dout),
            [self.saved.shape],
        )
        return dx


gated_gelu = _GatedGelu.apply


_SIZES = "{%s_shape2, %s_shape3, %s_shape2, %s_shape3, in0_p, in1_p, in2_p, out0_p}, out0->num);"


class _NearestResize(jt.Function):
    def execute(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        self.shape = x.shape
        pairs = zip(x.shape[2:], size, strict=True)
        self.tables = [jt.array(nearest_indices(length, out_length)) for length, out_length in pairs]
        (y,) = _call(
            "pixel.cuh",
            "for_each(NearestResize" + _SIZES % ("in0", "in0", "out0", "out0"),
            (x, *self.tables),
            [(*x.shape[:2], *size)],
        )
        return y

    def grad(self, dout: jt.Var) -> tuple[jt.Var, None]:
        (dx,) = _call(
            "pixel.cuh",
            "for_each(NearestResizeBackward" + _SIZES % ("out0", "out0", "in0", "in0"),
            (dout, *self.tables),
            [self.shape],
        )
        return dx, None


def nearest_resize(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return _NearestResize.apply(x, size)
