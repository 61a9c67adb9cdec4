from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from net import primitives


@pytest.fixture
def use_kernels() -> Iterator[Callable[[bool], None]]:
    """`primitives.use_kernels`, with the default back in place afterwards."""
    yield primitives.use_kernels
    primitives.use_kernels(True)
