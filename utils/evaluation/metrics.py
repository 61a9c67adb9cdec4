"""The twelve metrics of image fusion, equal to the official evaluator's (film.md, section 5).

Every metric is a pure function of gray images, (H, W) arrays with values 0..255, the fused image first. Integer arrays
are converted; input that would silently change the result raises a `ValueError`: values in 0..1, values
outside 0..255, NaN and infinities, shapes that differ. Arithmetic is float64 throughout (the official code averages
some metrics in float32, which changes the seventh digit).

Where a formula divides zero by zero (the correlation with a constant image, Qabf of two constant sources) the result is
NaN, as in the official code; only VIFF, in both codes, counts a constant source as 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from utils.runtime.threads import keep_freed_memory
from utils.training.correlation import pearson

Image = NDArray[np.float64]

LEVELS = 256

# VIFF: the window of each scale, whose sigma is a fifth of its size, and the variance of the visual noise.
VIFF_WINDOWS = (17, 9, 5, 3)
VIFF_NOISE = 2.0
VIFF_EPSILON = 1e-10
# The shortest side that still leaves one window at the last scale: 41 -> 17 -> 7 -> 3 (a scale filters, then halves).
VIFF_MIN_SIDE = 41

# Rows of a filtered image that one matrix product computes, and rows of windows that are evaluated at a time.
FILTER_ROWS = 8
STRIP_ROWS = 64

# SSIM: the window, and the constants of Wang et al. 2004 for a data range of 255.
SSIM_WINDOW = 7
SSIM_C1 = (0.01 * 255) ** 2
SSIM_C2 = (0.03 * 255) ** 2

# Qabf: height, slope and centre of the two sigmoids, for the strength and for the direction of edges.
QABF_STRENGTH = (0.9994, -15.0, 0.5)
QABF_DIRECTION = (0.9879, -22.0, 0.8)


def _metric(formula: Callable[..., float]) -> Callable[..., float]:
    """Turn a formula into a public metric: check and convert the images, return a Python float.

    The formula itself remains available as ``__wrapped__``, so that `evaluate_pair` checks its images only once.
    """

    @wraps(formula)
    def checked(*images: ArrayLike) -> float:
        return _value(formula, _checked(images))

    return checked


def _value(formula: Callable[..., float], images: Sequence[Image]) -> float:
    # Zero divided by zero is NaN on purpose; see the module's docstring.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(formula(*images))


def _checked(images: Sequence[ArrayLike]) -> list[Image]:
    """The images as float64 arrays of one shape with finite values 0..255, or a ValueError that says what is wrong."""
    keep_freed_memory()  # here, because every evaluation starts here
    result = []
    for name, image in zip(("fused", "image_a", "image_b"), images, strict=False):
        array = np.asarray(image)
        if array.dtype.kind not in "uif":
            raise ValueError(f"{name}: numbers in 0..255 expected, not an array of {array.dtype}")
        if array.ndim != 2 or min(array.shape) < 2:
            raise ValueError(f"{name}: a gray image (H, W) of at least 2x2 expected, not shape {array.shape}")
        if result and array.shape != result[0].shape:
            raise ValueError(f"{name}: has shape {array.shape}, but fused has {result[0].shape}")
        array = np.ascontiguousarray(array, np.float64)
        low, high = array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{name}: holds values that are not finite")
        if low < 0 or high > LEVELS - 1:
            raise ValueError(f"{name}: holds values in {low:g}..{high:g}; 0..255 expected")
        if 0 < high <= 1:
            raise ValueError(f"{name}: values in 0..1 would give wrong metrics; multiply by 255 and round")
        result.append(array)
    return result


@_metric
def entropy(fused: Image, /) -> float:
    """EN: entropy in bits of the histogram of rounded values; 0..8."""
    return _entropy(np.bincount(_rounded(fused).ravel())) / np.log(2)


@_metric
def standard_deviation(fused: Image, /) -> float:
    """SD: population standard deviation."""
    return fused.std()


@_metric
def spatial_frequency(fused: Image, /) -> float:
    """SF: sqrt(mean of squared horizontal differences + mean of squared vertical differences), without padding."""
    return np.sqrt(np.mean(np.diff(fused, axis=1) ** 2) + np.mean(np.diff(fused, axis=0) ** 2))


@_metric
def average_gradient(fused: Image, /) -> float:
    """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the border."""
    return np.mean(cv2.magnitude(*np.gradient(fused))) / np.sqrt(2)


@_metric
def mutual_information(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """MI: mutual information of the fused image with A plus that with B, of rounded values, in nats.

    I(F, A) = H(F) + H(A) - H(F, A).
    """
    rows = _rounded(fused) * LEVELS
    total = 0.0
    for source in (image_a, image_b):
        joint = np.bincount((rows + _rounded(source)).ravel(), minlength=LEVELS**2).reshape(LEVELS, LEVELS)
        total += _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1)) - _entropy(joint)
    return total


@_metric
def mean_squared_error(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """MSE: mean of the squared errors against A and against B."""
    return (np.mean((image_a - fused) ** 2) + np.mean((image_b - fused) ** 2)) / 2


@_metric
def correlation(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """CC: mean of Pearson's correlations with A and with B."""
    return np.mean(pearson(fused, image_a, image_b))


@_metric
def psnr(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """PSNR: in dB; the peak is the fused image's own maximum, the error is MSE. Infinite if the error is 0."""
    return 10 * np.log10(fused.max() ** 2 / mean_squared_error.__wrapped__(fused, image_a, image_b))


@_metric
def scd(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """SCD: sum of the correlations of differences, r(A, F - B) + r(B, F - A) (Aslantas and Bendes 2015)."""
    return sum(pearson(image_a, fused - image_b) + pearson(image_b, fused - image_a))


@_metric
def viff(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """VIFF: VIFp(A, F) + VIFp(B, F), the pixel-domain visual information fidelity (Sheikh and Bovik 2006).

    Raises:
        ValueError: an image shorter than 41 pixels on a side; the last of the four scales has no window then.
    """
    if min(fused.shape) < VIFF_MIN_SIDE:
        height, width = fused.shape
        raise ValueError(
            f"{height}x{width} is too small for VIFF: its four scales need {VIFF_MIN_SIDE}x{VIFF_MIN_SIDE}"
        )
    images = np.stack([fused, image_a, image_b])
    sums = np.zeros((2, 2))
    for size in VIFF_WINDOWS:
        window = cv2.getGaussianKernel(size, size / 5).ravel()
        if size != VIFF_WINDOWS[0]:
            images = _filtered(images, window, step=2)
        for strip in _strips(images, size):
            sums += _information(strip, window)
    arrived, present = sums
    return np.where(present == 0, 1, arrived / present).sum()


def _information(images: Image, window: NDArray[np.float64]) -> NDArray[np.float64]:
    """The information of A and of B that reached F, and that in A and in B: (2, 2); `images` are a strip."""
    fused, sources = images[0], images[1:]
    products = np.empty((8, *fused.shape))
    products[:3] = images
    np.multiply(images, images, out=products[3:6])
    np.multiply(sources, fused, out=products[6:])
    means, variances, covariances = np.split(_filtered(products, window), (3, 6))
    covariances -= means[1:] * means[0]
    means *= means
    variances -= means  # rounding errors can make them negative
    # Windows that are constant in an image, or whose covariance is not positive, transmit no information.
    variances[variances < VIFF_EPSILON] = 0
    variance_f, present = variances[0], variances[1:]
    np.maximum(covariances, 0, out=covariances)
    covariances[:, variance_f == 0] = 0
    gain = covariances / (present + VIFF_EPSILON)
    # 1 + gain^2 variance / (residual + noise), with the residual variance_f - gain covariance, at least epsilon.
    divisor = np.multiply(gain, covariances, out=covariances)
    np.subtract(variance_f + VIFF_NOISE, divisor, out=divisor)
    np.maximum(divisor, VIFF_EPSILON + VIFF_NOISE, out=divisor)
    arrived = np.multiply(gain, gain, out=gain)
    arrived *= present
    arrived /= divisor
    arrived += 1
    present /= VIFF_NOISE
    present += 1
    # Of the products of columns: logarithms take longer, and 64 values below 1e4 have a product below 1e256.
    return np.array([np.log10(values.prod(axis=1)).sum(axis=1) for values in (arrived, present)])


@_metric
def qabf(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """Qabf: how much of the sources' edges is kept (Xydeas and Petrovic 2000), weighted by edge strength; 0..1."""
    strength_f, angle_f = _edges(fused)
    kept = present = 0.0
    for source in (image_a, image_b):
        strength, angle = _edges(source)
        ratio = np.minimum(strength, strength_f) / np.maximum(strength, strength_f)
        # Where both are equal the ratio is 1, but the official code uses the gradient itself, and so must we.
        np.copyto(ratio, strength, where=strength == strength_f)
        alignment = cv2.absdiff(angle, angle_f)
        alignment /= -np.pi / 2
        alignment += 1
        lost = _sigmoid_divisor(ratio, *QABF_STRENGTH)
        lost *= _sigmoid_divisor(alignment, *QABF_DIRECTION)
        kept += np.sum(strength / lost)
        present += np.sum(strength)
    return np.divide(kept, present)


@_metric
def ssim(fused: Image, image_a: Image, image_b: Image, /) -> float:
    """SSIM: SSIM(A, F) + SSIM(B, F), 7x7 uniform windows inside the image, sample covariance, data range 255.

    These are scikit-image's defaults, which the official code uses.

    Raises:
        ValueError: an image shorter than 7 pixels on a side.
    """
    if min(fused.shape) < SSIM_WINDOW:
        height, width = fused.shape
        raise ValueError(f"{height}x{width} is too small for SSIM: its window needs {SSIM_WINDOW}x{SSIM_WINDOW}")
    images = np.stack([fused, image_a, image_b])
    count = (fused.shape[0] - SSIM_WINDOW + 1) * (fused.shape[1] - SSIM_WINDOW + 1)
    return sum(map(_similarity, _strips(images, SSIM_WINDOW))) / count


def _similarity(images: Image) -> float:
    """The sum over the windows of a strip of what SSIM averages."""
    fused, sources = images[0], images[1:]
    products = np.empty((7, *fused.shape))
    products[:3] = images
    # SSIM needs the variances of two images only as their sum.
    np.multiply(sources, sources, out=products[3:5])
    products[3:5] += fused * fused
    np.multiply(sources, fused, out=products[5:])
    means, variances, covariances = np.split(_means_of_ssim(products), (3, 5))
    product = means[1:] * means[0]
    means *= means
    squares = means[1:] + means[0]
    covariances -= product
    variances -= squares
    # (2 product + C1) (2 covariance + C2) / ((squares + C1) (variances + C2)), with the divisor 48 of the moments.
    c2 = SSIM_C2 * (1 - 1 / SSIM_WINDOW**2)
    product += SSIM_C1 / 2
    covariances += c2 / 2
    squares += SSIM_C1
    variances += c2
    product *= covariances
    squares *= variances
    product /= squares
    return 4 * product.sum()


def _rounded(image: Image) -> NDArray[np.uint16]:
    """Whole values, of a type that also holds the number of a pair of them."""
    return np.rint(image).astype(np.uint16)


def _entropy(counts: NDArray[np.intp]) -> float:
    """Entropy in nats of a histogram of any shape."""
    p = counts[counts > 0] / counts.sum()
    return -np.sum(p * np.log(p)) + 0.0  # the sum adds no value, but turns the -0.0 of a constant image into 0.0


def _filtered(images: Image, window: NDArray[np.float64], step: int = 1) -> Image:
    """`images` (n, H, W) filtered with a separable `window` (N,), where it is inside, at every `step`-th place.

    `FILTER_ROWS` rows of a result are the product of a banded matrix and the rows that they depend on, which BLAS
    computes several times faster than cv2.sepFilter2D (float64, 17 values). Sides up to 2700 are too short for BLAS to
    start threads, which would keep the cores busy.
    """
    for axis in (1, 2):
        shape = [*images.shape]
        shape[axis] = count = (shape[axis] - len(window)) // step + 1
        rows = min(FILTER_ROWS, count)
        # By columns: then BLAS needs less than half the time for the second axis (with AVX-512).
        band = np.zeros((rows, (rows - 1) * step + len(window)), order="F")
        for row in range(rows):
            band[row, row * step : row * step + len(window)] = window
        result = np.empty(shape)
        source, target = images.swapaxes(1, axis), result.swapaxes(1, axis)
        parts = sliding_window_view(source, band.shape[1], axis=1)[:, :: rows * step].swapaxes(2, 3)
        full = parts.shape[1] * rows
        np.matmul(band, parts, out=target[:, :full].reshape(*parts.shape[:2], rows, -1))
        # The last rows, some of them again: `count` need not be a multiple of `rows`.
        np.matmul(band, source[:, (count - rows) * step :][:, : band.shape[1]], out=target[:, -rows:])
        images = result
    return images


def _strips(images: Image, size: int) -> Iterator[Image]:
    """The images (n, H, W) in strips of a few rows, so that their moments stay in the processor's cache.

    Each window of `size` rows is in one strip; a strip has `STRIP_ROWS` rows of windows, the last one the rest.
    """
    for top in range(0, images.shape[1] - size + 1, STRIP_ROWS):
        yield images[:, top : top + STRIP_ROWS + size - 1]


def _means_of_ssim(images: Image) -> Image:
    """The means of images (n, H, W) in the windows of SSIM that are inside."""
    size = SSIM_WINDOW
    # One below the other, by the first place of each window; those in two images, or outside, are cut off.
    means = cv2.boxFilter(images.reshape(-1, images.shape[2]), -1, (size, size), anchor=(0, 0))
    return means.reshape(images.shape)[:, : 1 - size, : 1 - size]


def _edges(image: Image) -> tuple[Image, Image]:
    """Strength and angle (-pi/2..pi/2; pi/2 where the horizontal gradient is 0) of the zero-padded Sobel gradient."""
    gx = cv2.Sobel(image, -1, 1, 0, borderType=cv2.BORDER_CONSTANT)
    # OpenCV's vertical kernel points down, the official one up; the sign matters because some angles are set to pi/2.
    gy = cv2.Sobel(image, -1, 0, 1, scale=-1, borderType=cv2.BORDER_CONSTANT)
    strength, flat = cv2.magnitude(gx, gy), gx == 0
    angle = np.divide(gy, gx, out=gy)
    np.arctan(angle, out=angle)
    angle[flat] = np.pi / 2
    return strength, angle


def _sigmoid_divisor(x: Image, height: float, slope: float, centre: float) -> Image:
    """(1 + exp(slope (x - centre))) / height, of which the sigmoid is the reciprocal; computed in `x`."""
    x -= centre
    x *= slope
    cv2.exp(x, dst=x)
    x += 1
    x /= height
    return x


# By their official names, in the official order.
_OF_FUSED: dict[str, Callable[..., float]] = {
    "EN": entropy,
    "SD": standard_deviation,
    "SF": spatial_frequency,
    "AG": average_gradient,
}
_OF_PAIR: dict[str, Callable[..., float]] = {
    "MI": mutual_information,
    "MSE": mean_squared_error,
    "CC": correlation,
    "PSNR": psnr,
    "SCD": scd,
    "VIFF": viff,
    "Qabf": qabf,
    "SSIM": ssim,
}
METRICS = (*_OF_FUSED, *_OF_PAIR)


def evaluate_pair(fused: ArrayLike, image_a: ArrayLike, image_b: ArrayLike) -> dict[str, float]:
    """All twelve metrics of one fused image, by their names in `METRICS` and in that order.

    Args:
        fused, image_a, image_b: (H, W), one shape, values 0..255, as `utils.data.images.read_gray` returns them.

    Raises:
        ValueError: images that differ in shape, are smaller than 41x41, hold values that are not finite or outside
            0..255, or seem to be in 0..1.
    """
    images = _checked((fused, image_a, image_b))
    values = {name: _value(metric.__wrapped__, images[:1]) for name, metric in _OF_FUSED.items()}
    return values | {name: _value(metric.__wrapped__, images) for name, metric in _OF_PAIR.items()}


# The official table, whose columns are not quite regular; film.md, section 5.
TABLE_RULE = "=" * 80
TABLE_NAME_WIDTH = 16
TABLE_COLUMN_WIDTH = 8
TABLE_HEADER = " EN      SD      SF      AG     VIFF     Qabf"
TABLE_METRICS = tuple(TABLE_HEADER.split())
# Their descriptions in the legend of the report.
METRIC_TITLES = {
    "EN": "entropy",
    "SD": "standard deviation",
    "SF": "spatial frequency",
    "AG": "average gradient",
    "VIFF": "visual information fidelity for fusion",
    "Qabf": "edge information kept",
}


def format_table(dataset: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """The table in the official form, without a final line break.

    Args:
        dataset: the name in its title.
        rows: label -> metrics (those of `TABLE_METRICS`; others are ignored), one per line.
    """
    name_width = max([TABLE_NAME_WIDTH, *(len(label) + 2 for label in rows)])
    lines = [TABLE_RULE, f"The test result of {dataset}:", " " * name_width + TABLE_HEADER]
    for label, values in rows.items():
        cells = "".join(f"{values[name]:<{TABLE_COLUMN_WIDTH}.2f}" for name in TABLE_METRICS)
        lines.append(f"{label:<{name_width}}{cells}".rstrip())
    return "\n".join([*lines, TABLE_RULE])
