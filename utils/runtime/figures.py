"""Charts and pages: figures of matplotlib that look the same whatever the environment says, written as files."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from utils.runtime.errors import UserError, first_line, printable
from utils.runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def new_figure(path: Path, width: float, height: float, dpi: int) -> Iterator[Figure]:
    """Yield an empty figure of this size in inches, on which the body draws; then write it to `path`.

    The user's settings, such as a matplotlibrc, have no effect. Names may hold any characters: `$` starts no formula.

    Args:
        path: its suffix is the format, .png or .svg.

    Raises:
        UserError: matplotlib cannot be started, or `path` cannot be written.
    """
    matplotlib = _matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        # Its font lacks Chinese characters and others; boxes stand for them.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        # Not pyplot: its figures and its choice of a backend are global to the process.
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=dpi)


def short(name: str, most: int = 60) -> str:
    """A name as the label of a figure: one line of at most `most` characters. Longer ones would displace the figure."""
    text = printable(name)
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _matplotlib() -> ModuleType:
    """Import matplotlib without $MPLBACKEND: it raises for a backend that is not installed, such as a notebook's.

    Where no folder for its settings can be written, it takes a temporary one; its warnings about that are not shown.

    Raises:
        UserError: it cannot be imported.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        import matplotlib.figure
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a damaged matplotlibrc, no temporary folder, a working folder that was deleted
        problem = f"matplotlib: cannot be started ({first_line(error)})"
        raise UserError(f"{problem}; check its settings: matplotlibrc, MPLCONFIGDIR") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib
