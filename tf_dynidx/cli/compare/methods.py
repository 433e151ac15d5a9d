"""What is compared: miners, each with settings of its own where it has any."""

import argparse
import dataclasses
from typing import Any

from tf_dynidx.cli import arguments
from tf_dynidx.cli.settings import MINERS, SHARINGS, Settings

# The settings that may differ between methods, with what reads them. Data, encoder, seeds and budget
# are the same for all: else the figures would be of more than the method.
OWN = {
    "batch": arguments.positive_int,
    "negatives": arguments.positive_int,
    "mining_queries": arguments.positive_int,
    "warmup_examples": arguments.count,
    "reads": arguments.positive_int,
    "sharing": arguments.one_of(SHARINGS),
    "learning_rate": arguments.positive_number,
    "temperature": arguments.positive_number,
    "unlabelled_weight": arguments.share,
}
# Nothing to a miner that mines nothing.
_OF_MINING = ("negatives", "mining_queries", "warmup_examples", "sharing", "unlabelled_weight")


@dataclasses.dataclass(frozen=True)
class Method:
    """One of the methods that are compared.

    Attributes:
        label: the miner and its own settings, as the command line has them.
        miner: a key of `MINERS`.
        own: its own settings, by their name in `Settings`.
    """

    label: str
    miner: str
    own: dict[str, Any]

    def settings(self, common: Settings, seed: int) -> Settings:
        """The settings of one run, those of the method in place of those that all have."""
        filled = dataclasses.replace(common, miner=self.miner, seed=seed, **self.own)
        if not filled.reads_a_part:
            filled = dataclasses.replace(filled, reads=None)
        # A miner without negatives has nothing to share them with, and nothing to warm up for.
        without = {"sharing": "batch", "warmup_examples": 0}
        return filled if filled.mines else dataclasses.replace(filled, **without)


def read(text: str) -> tuple[Method, ...]:
    """Methods from a text such as `tree,in-batch:batch=1024:learning_rate=0.01`.

    Raises:
        argparse.ArgumentTypeError: a miner or setting is unknown, a value is out of range, or a method
            is named twice.
    """
    methods = [_method(part.strip()) for part in text.split(",")]
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise argparse.ArgumentTypeError(
                f"{label} is named twice. Received: {text}. Name it once, or give it other settings."
            )
    return tuple(methods)


def _method(text):
    miner, *settings = text.split(":")
    if miner not in MINERS:
        raise argparse.ArgumentTypeError(
            f"a miner must be one of {', '.join(MINERS)}. Received: {miner!r}. Write miners with "
            "commas between them, as in tree,in-batch:batch=1024"
        )
    own = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in OWN:
            raise argparse.ArgumentTypeError(
                f"a method's own settings are {', '.join(OWN)}; the rest is the same for all. "
                f"Received: {setting!r} for {miner}. Write them as in {miner}:batch=1024"
            )
        if key in own:
            raise argparse.ArgumentTypeError(f"{key} is given twice. Received: {text}. Leave one out.")
        if key in _OF_MINING and not Settings(miner=miner).mines:
            raise argparse.ArgumentTypeError(
                f"{miner} mines no negatives. Received: {setting!r} for {miner}. Leave it out."
            )
        if key == "reads" and not Settings(miner=miner).reads_a_part:
            raise argparse.ArgumentTypeError(
                f"only the tree reads a part of its rows. Received: {setting!r} for {miner}. "
                "Leave it out."
            )
        try:
            own[key] = OWN[key](value)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{key} of {miner} {error}") from None
    label = ":".join([miner, *(f"{key}={value}" for key, value in sorted(own.items()))])
    return Method(label, miner, own)
