"""The twelve metrics as plain formulas, with full 2-D windows: the test reference of `utils.evaluation.metrics`.

The two share no code. Tests compare their values, `tools.benchmark metrics` their speed. Nothing here is optimised or
checked. Images are float64 arrays (H, W) of integers in 0..255. Formulas: film.md, section 5, and the papers that
`utils.evaluation.metrics` names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import convolve2d

Image = NDArray[np.float64]


def evaluate_pair(fused: Image, image_a: Image, image_b: Image) -> dict[str, float]:
    """All twelve metrics by their names in `utils.evaluation.metrics.METRICS`, and in that order."""
    sources = (image_a, image_b)
    error = sum(np.mean((source - fused) ** 2) for source in sources) / 2
    values = {
        "EN": entropy_bits(np.histogram(fused, bins=np.arange(257))[0]),
        "SD": np.sqrt(np.mean((fused - fused.mean()) ** 2)),
        "SF": np.sqrt(np.mean((fused[:, 1:] - fused[:, :-1]) ** 2) + np.mean((fused[1:, :] - fused[:-1, :]) ** 2)),
        "AG": average_gradient(fused),
        "MI": sum(mutual_information_nats(fused, source) for source in sources),
        "MSE": error,
        "CC": sum(pearson(fused, source) for source in sources) / 2,
        "PSNR": 20 * np.log10(fused.max()) - 10 * np.log10(error),
        "SCD": pearson(image_a, fused - image_b) + pearson(image_b, fused - image_a),
        "VIFF": viff(fused, image_a, image_b),
        "Qabf": qabf(fused, image_a, image_b),
        "SSIM": sum(ssim(fused, source) for source in sources),
    }
    return {name: float(value) for name, value in values.items()}


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Entropy in bits of a histogram of any shape."""
    p = counts[counts > 0] / counts.sum()
    return -np.sum(p * np.log2(p))


def average_gradient(image: Image) -> float:
    """AG: from central differences, one-sided at the border."""

    def derivative(x: Image) -> Image:
        return np.concatenate([x[1:2] - x[:1], (x[2:] - x[:-2]) / 2, x[-1:] - x[-2:-1]])

    gx, gy = derivative(image.T).T, derivative(image)
    return np.mean(np.sqrt((gx**2 + gy**2) / 2))


def mutual_information_nats(x: Image, y: Image) -> float:
    """H(x) + H(y) - H(x, y), in nats."""
    joint = np.histogram2d(x.ravel(), y.ravel(), bins=(np.arange(257), np.arange(257)))[0]
    bits = entropy_bits(joint.sum(axis=0)) + entropy_bits(joint.sum(axis=1)) - entropy_bits(joint)
    return bits * np.log(2)


def pearson(x: Image, y: Image) -> float:
    """Pearson's correlation of two images."""
    return np.corrcoef(x.ravel(), y.ravel())[0, 1]


def moments(x: Image, y: Image, window: Image) -> tuple[Image, Image, Image, Image, Image]:
    """Means of x and y, their variances and their covariance in each window that fits into the images."""
    means = [convolve2d(image, window, mode="valid") for image in (x, y, x * x, y * y, x * y)]
    mean_x, mean_y, square_x, square_y, product = means
    return mean_x, mean_y, square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y


def viff(fused: Image, image_a: Image, image_b: Image) -> float:
    """VIFP of A plus VIFP of B."""
    return vifp(image_a, fused) + vifp(image_b, fused)


def vifp(reference: Image, image: Image) -> float:
    """Pixel-domain VIF of `image` against `reference`; 1 where the reference holds no information."""
    noise, epsilon = 2.0, 1e-10
    numerator = denominator = 0.0
    for scale, size in enumerate((17, 9, 5, 3)):
        x = np.arange(size) - size // 2
        window = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * (size / 5) ** 2))
        window /= window.sum()
        if scale > 0:
            reference = convolve2d(reference, window, mode="valid")[::2, ::2]
            image = convolve2d(image, window, mode="valid")[::2, ::2]
        var_r, var_i, cov = moments(reference, image, window)[2:]
        var_r[var_r < 0] = 0
        var_i[var_i < 0] = 0

        gain = cov / (var_r + epsilon)
        residual = var_i - gain * cov
        flat = var_r < epsilon
        gain[flat] = 0
        residual[flat] = var_i[flat]
        var_r[flat] = 0
        flat = var_i < epsilon
        gain[flat] = 0
        residual[flat] = 0
        opposed = gain < 0
        residual[opposed] = var_i[opposed]
        gain[opposed] = 0
        residual[residual <= epsilon] = epsilon

        numerator += np.sum(np.log10(1 + gain**2 * var_r / (residual + noise)))
        denominator += np.sum(np.log10(1 + var_r / noise))
    return numerator / denominator if denominator > 0 else 1.0


def sobel(image: Image) -> tuple[Image, Image]:
    """Strength and angle (radians, -pi/2..pi/2) of the Sobel gradient, with zeros around the image."""
    gx = convolve2d(image, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], mode="same")
    gy = convolve2d(image, [[1, 2, 1], [0, 0, 0], [-1, -2, -1]], mode="same")
    angle = np.arctan(np.divide(gy, gx, out=np.full(gx.shape, np.inf), where=gx != 0))
    return np.sqrt(gx**2 + gy**2), angle


def qabf(fused: Image, image_a: Image, image_b: Image) -> float:
    """The share of the edges of A and B that the fused image keeps, weighted by their strength."""
    strength_f, angle_f = sobel(fused)
    numerator = denominator = 0.0
    for source in (image_a, image_b):
        strength, angle = sobel(source)
        weaker, stronger = np.minimum(strength, strength_f), np.maximum(strength, strength_f)
        ratio = np.divide(weaker, stronger, out=strength_f.copy(), where=weaker < stronger)
        alignment = 1 - np.abs(angle - angle_f) / (np.pi / 2)
        quality_strength = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5)))
        quality_angle = 0.9879 / (1 + np.exp(-22 * (alignment - 0.8)))
        numerator += np.sum(quality_strength * quality_angle * strength)
        denominator += np.sum(strength)
    return numerator / denominator


def ssim(fused: Image, source: Image) -> float:
    """Mean SSIM over 7x7 windows, variances and covariance with the divisor 48."""
    mean_f, mean_s, *rest = moments(fused, source, np.full((7, 7), 1 / 49))
    var_f, var_s, cov = (moment * 49 / 48 for moment in rest)
    c1, c2 = 2.55**2, 7.65**2
    return np.mean((2 * mean_f * mean_s + c1) * (2 * cov + c2) / ((mean_f**2 + mean_s**2 + c1) * (var_f + var_s + c2)))
