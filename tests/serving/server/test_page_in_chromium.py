import html
import re
import shutil
import subprocess

import pytest
import tensorflow as tf

from tests.serving.server.asking import predict
from tests.serving.small import DIM, embeddings, export
from tf_dynidx.serving.server import Server

BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
NAMES = ["<b>bold</b>", *(f"target {row}" for row in range(1, 30))]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    class Letters(tf.Module):
        def __call__(self, text):
            return tf.one_hot(tf.strings.length(text), DIM)

    path = tmp_path_factory.mktemp("export") / "exported"
    options = {"encode_query": Letters(), "query_spec": tf.TensorSpec([None], tf.string)}
    export(path, embeddings(30), identifiers=NAMES, k=20, **options)
    with Server(path, port=None, rest_port=0) as server:
        yield server


def seen(server, query, tmp_path):
    """The page as the browser has it, once it has asked."""
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom"),
        f"http://127.0.0.1:{server.rest_port}/{query}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_a_query_typed_into_the_page_shows_what_the_model_finds(server, tmp_path):
    page = seen(server, "?q=red", tmp_path)
    _, answer = predict(server, {"instances": ["red"]})
    expected = answer["predictions"][0]
    rows = re.findall(r"<tr><td[^>]*>(\d+)</td><td[^>]*>([^<]*)</td><td>(.*?)</td></tr>", page)
    assert [int(rank) for rank, _, _ in rows] == list(range(1, 11))
    # Identifiers are text, whatever they look like.
    assert [html.unescape(found) for _, _, found in rows] == expected["identifiers"][:10]
    assert "<b>bold" not in page
    for (_, score, _), exact in zip(rows, expected["scores"], strict=False):
        assert float(score) == pytest.approx(exact, abs=1e-4)
    assert re.search(r'role="status">10 results in \d+ ms<', page)


def test_the_page_waits_for_a_query(server, tmp_path):
    page = seen(server, "", tmp_path)
    assert '<table id="results" hidden' in page
    assert re.search(r'<label for="query" id="label">Query</label>', page)
