"""What an H5 file and the checkpoints of a training on it record about their data: the task and the text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

MAX_LENGTH = 1000


@dataclass(frozen=True)
class Provenance:
    """Texts that are empty where nothing is known: ready text features do not tell their encoder.

    Attributes:
        task: a key of `TASKS`.
        text_encoder: the name of the encoder on the hub, or its folder as an absolute path.
        encoder_digest: `TextEncoder.fingerprint`, a hash of its configuration and weights.
    """

    task: str = ""
    text_encoder: str = ""
    encoder_digest: str = ""

    @classmethod
    def read(cls, record: object) -> Provenance:
        """The provenance in an untrusted mapping; whatever is not a short printable text is unknown."""
        if not isinstance(record, Mapping):
            return cls()
        found = {field.name: record.get(field.name) for field in fields(cls)}
        return cls(
            **{
                name: text
                for name, text in found.items()
                if isinstance(text, str) and len(text) <= MAX_LENGTH and text.isprintable()
            }
        )

    def other_encoder(self, digest: str) -> bool:
        """Whether `digest` is known to be that of another encoder."""
        return bool(digest and self.encoder_digest and digest != self.encoder_digest)


UNKNOWN = Provenance()
