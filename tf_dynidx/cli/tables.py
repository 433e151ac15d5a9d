"""Tables as text."""


def aligned(lines, right):
    """Lines of cells in columns, two spaces apart.

    Args:
        lines: lists of str, all of one length.
        right: for each column, whether it is aligned at its right end, as numbers are.

    Returns:
        str.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
