"""The next version of an export, with targets from files."""

import os

import numpy as np

from tf_dynidx.cli.data import DataError, read_targets
from tf_dynidx.corpus import TargetCorpus
from tf_dynidx.serving import refresh_export


def export(
    folder: str | os.PathLike,
    added: str | None = None,
    updated: str | None = None,
    removed: str | None = None,
    **options,
) -> str:
    """Writes the next version of an export.

    Args:
        folder: The export, or the folder of its versions.
        added, updated: Files of targets, as `read_targets` reads them.
        removed: A file with an identifier a line.
        options: As for `refresh_export`.

    Returns:
        The folder of the new version.

    Raises:
        DataError: If a file cannot be used.
        ValueError: If `refresh_export` refuses the changes.
    """
    return refresh_export(
        folder,
        added=added and _corpus(added),
        updated=updated and _corpus(updated),
        removed=removed and _identifiers(removed),
        **options,
    )


def _corpus(path):
    targets = read_targets(path)
    return TargetCorpus(np.array(targets.texts), identifiers=targets.identifiers)


def _identifiers(path):
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\r\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: this cannot be read as text. Received: {error}. Name a file with an identifier a "
            "line."
        ) from error
