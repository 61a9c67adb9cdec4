"""What files record about their data, read from files that anybody may have written."""

from __future__ import annotations

import pytest

from utils.data.provenance import MAX_LENGTH, UNKNOWN, Provenance


def test_a_record_is_read():
    record = {"task": "IVF", "text_encoder": "编码器/a b", "encoder_digest": "e690", "more": 1}
    assert Provenance.read(record) == Provenance("IVF", "编码器/a b", "e690")


@pytest.mark.parametrize("value", [None, 7, ["a"], b"a", "a\nb", "a\x1b[2J", "a" * (MAX_LENGTH + 1)])
def test_what_is_no_short_printable_text_is_unknown(value):
    assert Provenance.read({"task": value, "encoder_digest": "e"}) == Provenance(encoder_digest="e")
    assert Provenance.read(value) == UNKNOWN


def test_only_two_known_digests_can_differ():
    assert Provenance(encoder_digest="a").other_encoder("b")
    assert not Provenance(encoder_digest="a").other_encoder("a")
    assert not Provenance(encoder_digest="a").other_encoder("")
    assert not UNKNOWN.other_encoder("b")
