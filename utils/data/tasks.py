"""The table of fusion tasks: everything that depends on the task (film.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A fusion task.

    Attributes:
        title: its name.
        folders: the folders of images A and B in a data set.
        sides: the names of images A and B in a paragraph.
        datasets: its usual data sets.
        resized: whether training images are resized to 288x384.
        thermal: whether image A is from a thermal camera, so that it may have false colours.
        stacks: whether more than two images can be fused.
        brightest_first: whether a stack is fused from the brightest image to the darkest; else as it is listed.
    """

    title: str
    folders: tuple[str, str]
    sides: tuple[str, str]
    datasets: tuple[str, ...]
    resized: bool = True
    thermal: bool = False
    stacks: bool = False
    brightest_first: bool = False

    @property
    def neutral(self) -> str:
        """The sentence for a pair that nobody has described."""
        return "The {} and the {} of the same scene.".format(*self.sides)


TASKS = {
    "IVF": Task(
        "infrared-visible",
        ("IR", "VI"),
        ("infrared image", "visible image"),
        ("MSRS", "M3FD", "RoadScene", "TNO", "Sample"),
        thermal=True,
    ),
    "MIF": Task("medical", ("MRI", "T"), ("MRI image", "CT, PET or SPECT image"), ("Harvard",), resized=False),
    "MEF": Task(
        "multi-exposure",
        ("OVER", "UNDER"),
        ("over-exposed image", "under-exposed image"),
        ("SICE", "MEFB", "Sample"),
        stacks=True,
        brightest_first=True,
    ),
    "MFF": Task(
        "multi-focus",
        ("NEAR", "FAR"),
        ("image focused on the near", "image focused on the far"),
        ("RealMFF", "Lytro", "Sample"),
        stacks=True,
    ),
}
