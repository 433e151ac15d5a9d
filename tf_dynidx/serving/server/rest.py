"""TF Serving's REST calls over HTTP: predict, status, metadata; and a page to ask from."""

import contextlib
import html
import http.server
import importlib.resources
import json
import re
import socket
import threading
import urllib.parse

from tf_dynidx.serving.server.columns import answer_of, inputs_of
from tf_dynidx.serving.server.predict import RequestError, predict, signature_of, specs_of
from tf_dynidx.serving.server.versions import Versions

_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata|:[a-z]+)?")
_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "INTERNAL": 500}
_LONGEST_BODY = 2**26


class RestServer(http.server.ThreadingHTTPServer):
    """Answers over HTTP, a thread for each connection.

    Args:
        address: host and port; port 0 for any that is free.
        versions: what is served.
    """

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], versions: Versions):
        self.versions = versions
        self._answering, self._changed = 0, threading.Condition()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    @contextlib.contextmanager
    def answering(self):
        """Counts a request that is being answered."""
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Waits until all requests are answered, or for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._answering, seconds)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body go out together
    server: RestServer

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/":
            return self._send(200, _page(self.server.versions.name), "text/html; charset=utf-8")
        self._answer(lambda: self._get(path))

    def do_POST(self):
        with self.server.answering():
            body = self._body()
            if body is not None:
                self._answer(lambda: self._post(urllib.parse.urlsplit(self.path).path, body))

    def log_message(self, format, *args):
        """Nothing: a line for each request would bury what matters."""

    def _get(self, path):
        name, version, action = _parsed(path)
        loaded = self.server.versions.get(name, version)
        if action == "/metadata":
            return {
                "model_spec": {"name": name, "signature_name": "", "version": str(loaded.version)},
                "metadata": {"signature_def": {"signature_def": loaded.signature_defs}},
            }
        if action:
            raise RequestError("NOT_FOUND", f"Malformed request: GET {path}. Use POST for {action}.")
        status = {"error_code": "OK", "error_message": ""}
        found = {"version": str(loaded.version), "state": "AVAILABLE", "status": status}
        return {"model_version_status": [found]}

    def _post(self, path, body):
        name, version, action = _parsed(path)
        if action != ":predict":
            raise RequestError(
                "NOT_FOUND", f"Malformed request: POST {path}. Only :predict is served here."
            )
        loaded = self.server.versions.get(name, version)
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError("INVALID_ARGUMENT", f"JSON Parse error: {error}") from error
        if not isinstance(request, dict) or not isinstance(request.get("signature_name", ""), str):
            raise RequestError("INVALID_ARGUMENT", f"A request is a JSON object. Received: {body[:80]}")
        signature = signature_of(loaded, request.get("signature_name", ""))
        outputs = predict(signature, inputs_of(request, specs_of(signature)))
        return answer_of(outputs, "instances" in request)

    def _body(self):
        length = self.headers.get("Content-Length")
        if length is None or not length.isdecimal() or int(length) > _LONGEST_BODY:
            # What follows on this connection is a body that nobody reads.
            self.close_connection = True
            wrong = f"A body has a Content-Length of at most {_LONGEST_BODY}. Received: {length}."
            self._send(413 if length and length.isdecimal() else 411, {"error": wrong})
            return None
        return self.rfile.read(int(length))

    def _answer(self, get):
        try:
            self._send(200, get())
        except RequestError as error:
            self._send(_STATUS[error.code], {"error": error.message})
        except (BrokenPipeError, ConnectionError):
            raise  # nobody is there any more
        except Exception as error:  # a server goes on
            self._send(500, {"error": f"{type(error).__name__}: {error}"})

    def _send(self, status, content, kind="application/json"):
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _parsed(path):
    """Name, version and action of a path; RequestError for any other."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise RequestError("NOT_FOUND", f"Malformed request: {path}. See /v1/models/NAME.")
    name, version, action = match.groups()
    return urllib.parse.unquote(name), None if version is None else int(version), action


def _page(name):
    page = importlib.resources.files("tf_dynidx.serving.server").joinpath("page.html")
    return page.read_text("utf-8").replace("{{name}}", html.escape(name))
