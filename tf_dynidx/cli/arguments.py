"""Values of options, read from text: each refusal says what was received."""

import argparse
import math


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, "a whole number of at least 1", 1)


def count(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, "a whole number of at least 0", 0)


def port(text: str) -> int:
    """A port, 0 for any that is free."""
    return _whole(text, "a port, 0 for any that is free", 0, 2**16 - 1)


def seed(text: str) -> int:
    """A whole number from 0 to 2^31 - 1."""
    most = 2**31 - 1
    return _whole(text, f"a whole number from 0 to {most}", 0, most)


def _whole(text, what, least, most=math.inf):
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"must be {what}. Received: {text}")
    return value


def positive_number(text: str) -> float:
    """A positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite. Received: {text}")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1. Received: {text}")
    return value


def one_of(choices):
    """A function from text to the choice that it names."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}. Received: {text}")
        return text

    return read
