"""Make `small.npz`; README.md says what it holds.

    python -m tests.golden.make ../shared/data/TNO

The outputs come from the PyTorch twin in float64 and from `tools.plain_metrics`, never from the Jittor code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from skimage.io import imread

from tests.golden.rule import text_feature, weight
from tools.plain_metrics import evaluate_pair

GOLDEN = Path(__file__).with_name("small.npz")
# The pair of the TNO set and its rows and columns: branches in front of the sky. Textured, because float32 loses the
# variances of flat regions, which moves the SSIM term by more than 1e-5.
PAIR, CUT = "umbrella.png", np.s_[48:96, 224:288]
GRAD_WEIGHT = 20
# Gradients that are stored in full; of all others the norm is.
GRADIENTS = (
    "restormerca1.convA1.weight",
    "restormerca1.preluB1.weight",
    "restormerca2.restormerB1.norm1.body.weight",
    "restormerca2.cross_attentionA1.multihead_attn.in_proj_bias",
    "restormerca3.cross_attentionA2.multihead_attn.out_proj.bias",
    "restormerca3.convB2.bias",
    "restormer1.attn.temperature",
    "conv2.weight",
)


def compute(image_a: np.ndarray, image_b: np.ndarray) -> dict[str, Any]:
    """Everything that follows from the images, uint8 (H, W), and the rule."""
    import torch  # here, so that the values can be read without it

    from tools.torch_film import TwinNet, fusion_loss, lp_ssim_loss

    net = TwinNet()
    weights = {name: weight(name, tuple(value.shape)) for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    net.double()
    # The float32 quotients are the input, in whatever precision the network then computes.
    a, b = (torch.from_numpy(image.astype(np.float32) / 255).double()[None, None] for image in (image_a, image_b))
    fused = net(a, b, torch.from_numpy(text_feature()).double())
    fusion = fusion_loss(a, b, fused, GRAD_WEIGHT)
    fusion[0].backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in net.named_parameters()}

    output = fused.detach().numpy()
    stretched = (output - output.min()) / (output.max() - output.min()) * 255
    fused_image = stretched[0, 0].astype(np.uint8)
    metrics = evaluate_pair(*(image.astype(np.float64) for image in (fused_image, image_a, image_b)))
    return {
        "names": np.array(list(weights)),
        "weight_norms": np.array([np.linalg.norm(value.astype(np.float64)) for value in weights.values()]),
        "text_norm": np.linalg.norm(text_feature().astype(np.float64)),
        "fused": output,
        "fusion_loss": np.array([term.item() for term in fusion]),
        "lp_ssim_a": np.array([term.item() for term in lp_ssim_loss(a, fused)]),
        "lp_ssim_b": np.array([term.item() for term in lp_ssim_loss(b, fused)]),
        "gradient_norms": np.array([np.linalg.norm(gradients[name]) for name in weights]),
        **{f"gradient/{name}": gradients[name] for name in GRADIENTS},
        "fused_image": fused_image,
        "metric_names": np.array(list(metrics)),
        "metrics": np.array(list(metrics.values())),
    }


def main(folder: Path) -> None:
    image_a, image_b = (imread(folder / source / PAIR)[CUT] for source in ("ir", "vi"))
    np.savez_compressed(GOLDEN, image_a=image_a, image_b=image_b, **compute(image_a, image_b))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
