"""One run in a process of its own, so that its memory is its own, and it fails alone.

python -m tf_dynidx.cli.compare.process JOB OUTCOME, JOB a JSON object, OUTCOME a file to be written.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tf_dynidx import files
from tf_dynidx.cli.data import digest, read_all
from tf_dynidx.cli.settings import Settings
from tf_dynidx.cli.start import import_tensorflow

_STOPPED = 130


def run_in_process(plan, run, checkpoint):
    """Trains one run in a process of its own.

    Args:
        plan: `Plan`.
        run: `Run`.
        checkpoint: folder for the state of the training, as for `train`.

    Returns:
        dict: what `train` reports, or "error", a str that says why there is no report.

    Raises:
        KeyboardInterrupt: this process or the other was stopped; the checkpoint is written.
    """
    job = {
        "paths": plan.paths,
        "digests": plan.digests,
        "settings": dataclasses.asdict(run.settings),
        "checkpoint": str(checkpoint),
        "parent": os.getpid(),
    }
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder) / "outcome.json"
        module = [sys.executable, "-m", "tf_dynidx.cli.compare.process"]
        with subprocess.Popen([*module, json.dumps(job), str(outcome)]) as process:
            try:
                process.wait()
            except KeyboardInterrupt:
                # Where Ctrl-C has reached it too, this comes second and is ignored.
                process.send_signal(signal.SIGTERM)
                process.wait()
                raise
        if process.returncode == _STOPPED:
            raise KeyboardInterrupt
        if outcome.exists():
            return json.loads(outcome.read_text(encoding="utf-8"))
    return {"error": _end(process.returncode)}


def _end(returncode):
    """What is known of a process that has left nothing."""
    if returncode >= 0:
        return f"the process ended with status {returncode}"
    cause = ", as a system does that is out of memory" if -returncode == signal.SIGKILL else ""
    return f"the process was ended by {signal.Signals(-returncode).name}{cause}"


def main(job: str, outcome: str) -> int:
    """Trains; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        found = _train(json.loads(job))
    except KeyboardInterrupt:
        return _STOPPED
    except Exception as error:
        # Whatever it is, it ends this run and no other. TensorFlow's messages go on for pages.
        first = (str(error).strip() or "no message").splitlines()[0]
        found = {"error": f"{type(error).__name__}: {first}"}
    files.write_json(outcome, found)
    return 0


def _train(job):
    paths = job["paths"]
    data = read_all(**paths)
    for name, part in zip(paths, data, strict=True):
        if digest(part) != job["digests"][name]:
            raise ValueError(
                f"{paths[name]}: the data have changed since the comparison began. "
                "Bring them back, or begin anew in another folder."
            )
    import_tensorflow()
    from tf_dynidx.cli.training import train
    from tf_dynidx.keras_world import keras

    class Orphan(keras.callbacks.Callback):
        """Stops the training, as Ctrl-C does, once the comparison that it belongs to is gone."""

        def on_train_batch_end(self, batch, logs=None):
            if os.getppid() != job["parent"]:
                raise KeyboardInterrupt

    settings = Settings(**job["settings"])
    return train(*data, settings, watch=Orphan(), checkpoint=job["checkpoint"]).report


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
