"""Memory of this process, of the accelerator, and of what a module holds, in bytes."""

import resource
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_dynidx.variables import named_variables


def status(field: str) -> int:
    """A line such as `VmHWM:   123 kB` of what Linux says of this process.

    Raises:
        OSError: there is no such line, or this is no Linux.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def process_peak() -> int:
    """The most memory that was resident at once since this program began."""
    try:
        # The other source counts, on Linux, what the process was before it began this program.
        return status("VmHWM")
    except OSError:
        return since_start()


def since_start() -> int:
    """The most memory that was resident at once, as the system's accounts have it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def accelerator_peak() -> int | None:
    """The most memory that TensorFlow had in use on all GPUs; None where there is none."""
    devices = [device.name for device in tf.config.list_logical_devices("GPU")]
    if not devices:
        return None
    return sum(tf.config.experimental.get_memory_info(device)["peak"] for device in devices)


def accelerator() -> str | None:
    """What the GPUs are called, one name for several of a kind; None without one."""
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return ", ".join(sorted({each.get("device_name", "GPU") for each in details})) or None


def held_by(module: tf.Module) -> int:
    """What the variables of a module take, wherever they are."""
    return sum(
        int(np.prod(variable.shape)) * variable.dtype.size
        for variable in named_variables(module).values()
    )
