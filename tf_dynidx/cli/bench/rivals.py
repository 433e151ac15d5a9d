"""Other libraries of nearest-neighbour search, where they are installed: Faiss and ScaNN."""

import contextlib
import importlib
import os
import sys
import warnings

import numpy as np

HOW_TO_INSTALL = "pip install 'tf_dynidx[bench]'"


def load(name):
    """A module, or None if it cannot be imported, for whatever reason.

    Not only ImportError: a binary that does not fit another library raises what it likes.
    """
    try:
        with warnings.catch_warnings(), _without_tensorflow():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception:
        return None


@contextlib.contextmanager
def _without_tensorflow():
    """Lets nothing import TensorFlow in the block.

    ScaNN comes with operations for TensorFlow, which are not needed here. It leaves them out where
    there is no TensorFlow, but fails to be imported beside another release than it was built for.
    """
    held = sys.modules.get("tensorflow")
    sys.modules["tensorflow"] = None
    try:
        yield
    finally:
        if held is None:
            del sys.modules["tensorflow"]
        else:
            sys.modules["tensorflow"] = held


def ivf_flat(faiss, targets, num_lists, seed=0):
    """Faiss's IVF-Flat for inner products: a search goes through the rows of the lists it probes."""
    dim = targets.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    # Faiss warns of fewer than 39 rows a list, on standard error.
    index.cp.min_points_per_centroid = 1
    index.cp.seed = seed + 1
    index.train(targets)
    index.add(targets)
    return index


def ivf_costs(index, queries):
    """Dot products a query that IVF-Flat takes on average: float64 [probes], for 1, 2, 3 ... probes.

    Every list's centroid counts one, and so does every row of a list that is probed.
    """
    order = index.quantizer.search(queries, index.nlist)[1]
    sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
    return index.nlist + np.cumsum(sizes[order], axis=1).mean(axis=0)


def ivf_search(index, probes, k):
    """A search as a function from queries to rows."""

    def search(queries):
        index.nprobe = int(probes)
        return index.search(queries, k)[1]

    return search


def scann_tree(scann, targets, k, num_leaves):
    """ScaNN as its documentation sets it up: a tree, hashed scores, and rescoring of the best."""
    return (
        scann.scann_ops_pybind.builder(targets, k, "dot_product")
        .tree(
            num_leaves=num_leaves,
            num_leaves_to_search=max(1, num_leaves // 20),
            training_sample_size=min(len(targets), 250_000),
        )
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(min(len(targets), 4 * k))
        .build()
    )


def scann_search(searcher, leaves, k):
    """A search as a function from queries to rows."""

    def search(queries):
        # One part for each core: by default it would take so many queries as one part, on one core.
        part = -(-len(queries) // (os.cpu_count() or 1))
        rows, _ = searcher.search_batched_parallel(
            queries, final_num_neighbors=k, leaves_to_search=leaves, batch_size=part
        )
        return rows.astype(np.int64)

    return search
