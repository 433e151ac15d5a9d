from tf_dynidx.cli.tables import aligned


def test_columns_are_aligned_at_either_end():
    lines = [["name", "number", "note"], ["a", "1,000", "b"], ["longer", "7", ""]]
    assert aligned(lines, [False, True, False]) == (
        "name    number  note\na        1,000  b\nlonger       7"
    )
