import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx.serving import identifiers
from tf_dynidx.serving.identifiers import Identifiers, checked_identifiers

KINDS = {
    "strings": (["b", "a", "zürich", "a\nb", "c" * 500], "d"),
    "bytes": ([b"\xff\xfe", b"a\0b", b"a"], b"\xff"),
    "integers": ([5, -7, 2**62, 0], 6),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_identifiers_lead_to_each_other(kind):
    known, unknown = KINDS[kind]
    held = Identifiers(checked_identifiers(known, len(known)))
    asked = tf.constant([[*known, unknown]], held.dtype)
    assert held.rows_of(asked).numpy().tolist() == [[*range(len(known)), -1]]
    rows = tf.constant([[1, -1], [0, 2]])
    nothing = -1 if kind == "integers" else b""
    back = held.of(rows).numpy().tolist()
    values = [each.encode() if isinstance(each, str) else each for each in known]
    assert back == [[values[1], nothing], [values[0], values[2]]]


def test_identifiers_that_share_a_fingerprint_are_told_apart(monkeypatch):
    # Only their lengths are looked at: most collide.
    lengths = lambda values: tf.cast(tf.strings.length(values), tf.int64)  # noqa: E731
    monkeypatch.setattr(identifiers, "_fingerprints", lengths)
    names = np.array(["a", "bb", "c", "dd", "e", "fff"])
    held = Identifiers(tf.constant(names))
    asked = tf.constant([*names[::-1], "x", "xx", "xxxx"])
    assert held.rows_of(asked).numpy().tolist() == [5, 4, 3, 2, 1, 0, -1, -1, -1]


@pytest.mark.parametrize(("known", "nothing"), [(["a", ""], "b''"), ([3, -1], "-1")])
def test_what_stands_for_no_target_is_no_identifier(known, nothing):
    with pytest.raises(ValueError, match=f"^{nothing} stands for no target .* {nothing} in row 1.$"):
        checked_identifiers(known, 2)
