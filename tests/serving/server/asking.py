"""How tests ask a server over HTTP."""

import json
import urllib.error
import urllib.request


def fetch(server, path, content=None, raw=None):
    """Status and content of an answer; `content` is sent as JSON, `raw` as it is."""
    data = raw if raw is not None else None if content is None else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}{path}", data) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def predict(server, content, name="retrieval"):
    return fetch(server, f"/v1/models/{name}:predict", content)
