"""Whose turn it is, where all rows of a corpus are to be encoded again, some at each step."""

import math


def in_turn(turns, number):
    """The row whose turn it is: all rows once before any again, far from one to the next.

    Multiples of a number near the golden section of `number` that has no factor in common with it. No
    table of an order is kept, which would be as long as the corpus.
    """
    stride = max(1, round(0.618034 * number))
    while math.gcd(stride, number) > 1:
        stride += 1
    return turns % number * stride % number
