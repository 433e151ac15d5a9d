import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx.cli import memory


def test_all_variables_of_a_module_count():
    module = tf.Module()
    module.rows = tf.Variable(tf.zeros([10, 4], tf.float16))
    module.parts = [tf.Variable(tf.zeros([3], tf.int64)), tf.Module()]
    module.parts[1].same = module.rows
    module.parts[1].flag = tf.Variable(True)
    module.number = 7
    assert memory.held_by(module) == 10 * 4 * 2 + 3 * 8 + 1
    assert memory.held_by(tf.Module()) == 0


def test_peak_of_the_process_stays_when_memory_is_freed():
    before = memory.process_peak()
    np.ones(75_000_000, np.float32).sum()
    after = memory.process_peak()
    assert after >= max(before, 300_000_000)
    assert memory.process_peak() >= after


def test_peaks_of_all_accelerators_are_summed(monkeypatch):
    devices = []
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    assert memory.accelerator_peak() is None
    for number in range(2):
        devices.append(tf.config.LogicalDevice(f"/device:GPU:{number}", "GPU"))
    peaks = {"/device:GPU:0": 5, "/device:GPU:1": 7}
    monkeypatch.setattr(
        tf.config.experimental, "get_memory_info", lambda name: {"current": 1, "peak": peaks[name]}
    )
    assert memory.accelerator_peak() == 12


def test_accelerators_of_a_kind_are_named_once(monkeypatch):
    names = {}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(names))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", names.get)
    assert memory.accelerator() is None
    names.update({"0": {"device_name": "NVIDIA H200"}, "1": {"device_name": "NVIDIA H200"}, "2": {}})
    assert memory.accelerator() == "GPU, NVIDIA H200"


def test_what_the_system_does_not_tell_is_an_error():
    with pytest.raises(OSError):
        memory.status("VmNothing")
