"""What a training can be told, without TensorFlow, so that bad arguments are refused at once."""

import dataclasses
import math

# By the name on the command line: the class in `tf_dynidx.miners`.
MINERS = {
    "tree": "Tree",
    "in-batch": "InBatch",
    "uniform": "Uniform",
    "popularity": "Popularity",
    "stochastic": "Stochastic",
    "stale": "Stale",
    "cache": "NegativeCache",
    "exact": "Exact",
}
SHARINGS = ("batch", "none")
BUDGETS = ("steps", "seconds", "encoder_calls")

_LEARNING_RATES = {"text": 5e-3, "id": 3e-2}
_TEMPERATURES = {"text": 0.05, "id": 0.1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `train` can be told; the defaults are the command line's.

    Attributes:
        encoder: "text" or "id".
        miner: a key of `MINERS`.
        steps: training steps; or
        seconds: wall time of training, evaluation apart; or
        encoder_calls: targets encoded in training, evaluation apart: those of the steps and those that
            the miner encodes by itself. None of the three: ten epochs.
        batch: queries a step.
        negatives: mined negatives a query.
        mining_queries: queries of a batch that negatives are drawn for, as for `DualEncoder`.
        warmup_examples: examples that are trained on before anything is mined, as for `DualEncoder`.
        reads: rows that the tree scores for a query, `budget` of `miners.Tree`. Default: its own.
        sharing: "batch" or "none", as for `DualEncoder`.
        dim: dimension of the encodings.
        temperature: what scores are divided by. Default: 0.05 for text, 0.1 for ids.
        learning_rate: Adam's at the start; it falls linearly to 2 % of that over the budget. Default:
            0.005 for text, 0.03 for ids, whose embeddings each see few examples.
        unlabelled_weight: what targets without a training pair count as negatives, as for
            `DualEncoder`.
        dropout: share of a text query's features dropped in training.
        seed: seeds weights, order of the data and draws.
    """

    encoder: str = "text"
    miner: str = "tree"
    steps: int | None = None
    seconds: float | None = None
    encoder_calls: int | None = None
    batch: int = 512
    negatives: int = 2
    mining_queries: int = 256
    warmup_examples: int = 0
    reads: int | None = None
    sharing: str = "batch"
    dim: int = 64
    temperature: float | None = None
    learning_rate: float | None = None
    unlabelled_weight: float = 1.0
    dropout: float = 0.0
    seed: int = 0

    @property
    def mines(self) -> bool:
        """Whether the miner draws negatives at all."""
        return self.miner != "in-batch"

    @property
    def reads_a_part(self) -> bool:
        """Whether the miner looks at a part of its rows, so that `reads` can say at how many."""
        return self.miner == "tree"

    @property
    def warmup_steps(self) -> int:
        """How many steps, the first, mine nothing."""
        return math.ceil(self.warmup_examples / self.batch)

    @property
    def candidates(self) -> int:
        """How many targets a step that mines encodes: a positive for each query, and what is mined."""
        if not self.mines:
            return self.batch
        asking = min(self.batch, self.mining_queries) if self.sharing == "batch" else self.batch
        return self.batch + asking * self.negatives

    def filled(self) -> "Settings":
        """The same, with what suits the encoder where nothing is given."""
        usual = {
            "learning_rate": _LEARNING_RATES[self.encoder],
            "temperature": _TEMPERATURES[self.encoder],
        }
        missing = {name: value for name, value in usual.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def check(self, num_targets: int) -> None:
        """Refuses what no model could be made of.

        Raises:
            ValueError: more negatives than targets, own negatives or a warm-up of a miner that draws
                none, a warm-up of queries that share nothing, rows to read for another than the tree,
                or more than one budget.
        """
        if self.mines and self.negatives > num_targets:
            raise ValueError(
                f"There are fewer targets than negatives. Received: {num_targets} targets, "
                f"{self.negatives} negatives for {self.miner}. Ask for fewer."
            )
        if not self.mines and self.sharing == "none":
            raise ValueError(
                f"A query that shares nothing needs negatives of its own, and {self.miner} mines none. "
                f"Received: sharing={self.sharing} for {self.miner}. Use another miner, or share."
            )
        if self.warmup_examples and (self.sharing == "none" or not self.mines):
            raise ValueError(
                "A warm-up is for a miner, and has queries share the positives of their batch. "
                f"Received: warmup_examples={self.warmup_examples}, sharing={self.sharing} for "
                f"{self.miner}. Leave it out."
            )
        if self.reads is not None and not self.reads_a_part:
            raise ValueError(
                f"Only the tree reads a part of its rows. Received: reads={self.reads} for "
                f"{self.miner}. Leave it out."
            )
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(
                f"A training has one budget. Received: {' and '.join(budgets)}. Leave one of them."
            )
