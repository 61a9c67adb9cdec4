"""The operations under FILM's layers: the kernels of `cpu` or `cuda` where they serve, else the forms of `portable`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps

from net import cpu, cuda, portable
from utils.runtime.jittor_env import jt

_settings = {"kernels": os.environ.get("FILM_PORTABLE", "0") != "1"}


def use_kernels(on: bool) -> None:
    """Allow FILM's own kernels (the default, unless $FILM_PORTABLE is 1), or have the portable forms everywhere."""
    _settings["kernels"] = on


def kernels_in_use() -> bool:
    """Whether the CPU kernels compute: they are allowed, and Jittor works on the CPU."""
    return _settings["kernels"] and not jt.flags.use_cuda


def _fastest(form: Callable[..., jt.Var]) -> Callable[..., jt.Var]:
    """The primitive of which `form` is the portable form."""
    on_cpu, on_gpu = (getattr(module, form.__name__, form) for module in (cpu, cuda))

    @wraps(form)
    def primitive(*args: object) -> jt.Var:
        if not _settings["kernels"]:
            return form(*args)
        return (on_gpu if jt.flags.use_cuda else on_cpu)(*args)

    return primitive


pointwise_conv = _fastest(portable.pointwise_conv)
conv3x3 = _fastest(portable.conv3x3)
prelu = _fastest(portable.prelu)
merge = _fastest(portable.merge)
pooled_text_attention = _fastest(portable.pooled_text_attention)
nearest_resize = _fastest(portable.nearest_resize)

depthwise_conv3x3 = _fastest(portable.depthwise_conv3x3)
gated_gelu = _fastest(portable.gated_gelu)
channel_layer_norm = _fastest(portable.channel_layer_norm)
channel_mixing = _fastest(portable.channel_mixing)
l1_normalize = portable.l1_normalize
