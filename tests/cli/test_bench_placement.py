"""`tf-dynidx bench placement`: what it measures, on a second CPU that stands in for an accelerator."""

import json

import pytest

from tf_dynidx.cli.main import main

TARGETS, MB = 3000, 2**20


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Of processes of their own, each of which compiles its step."""
    report = tmp_path_factory.mktemp("placement") / "report.json"
    sizes = ["--rows", str(TARGETS), "--steps", "2", "--batch", "16"]
    assert main(["bench", "placement", *sizes, "--report", str(report)]) == 0
    rows = json.loads(report.read_text())["tables"]["placement"]
    return {(row["miner"], row["corpus_on"]): row for row in rows}


def test_accelerator_holds_what_is_not_on_the_host(table):
    features, counts = TARGETS * 32 * 4, TARGETS * 4 + 4
    cache, tree = table["cache", "device"], table["tree", "device"]
    for each in (cache, tree):
        assert each["features"] == pytest.approx(features / MB)
        assert each["counts"] == pytest.approx(counts / MB)
    # An encoding and its age for each target; the tree's slots are more than there are targets.
    assert cache["miner's"] == pytest.approx(TARGETS * (64 * 4 + 8) / MB, rel=0.01)
    assert tree["miner's"] > cache["miner's"]
    assert cache["host"] == tree["host"] == 0
    assert cache["accelerator"] == pytest.approx(cache["miner's"] + (features + counts) / MB)


def test_host_holds_the_rest(table):
    here, there = table["tree", "device"], table["tree", "host"]
    assert there["host"] + there["accelerator"] == pytest.approx(here["accelerator"])
    assert there["accelerator"] * MB < 100  # what the miner counts
    assert there["times_less"] == pytest.approx(
        table["cache", "device"]["accelerator"] / there["accelerator"]
    )


def test_training_does_not_depend_on_the_place(table):
    here, there = table["tree", "device"], table["tree", "host"]
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)
    assert there["recall@10"] == pytest.approx(here["recall@10"], abs=0.01)
    assert 0 < table["in-batch", "host"]["recall@10"] < 1
