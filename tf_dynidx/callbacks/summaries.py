"""Event files for TensorBoard, written with TensorFlow alone: TensorBoard need not be installed."""

import numpy as np
import tensorflow as tf

_BINS = 30


def write_scalar(name, value, step):
    """Writes a number to the default writer."""
    metadata = _metadata("scalars", data_class=1)
    tf.summary.write(name, tf.constant(value, tf.float32), step=step, metadata=metadata)


def write_histogram(name, values, step):
    """Writes the distribution of numbers, as counts in equal bins, to the default writer."""
    counts, edges = np.histogram(np.asarray(values, np.float64), bins=_BINS)
    bins = np.stack([edges[:-1], edges[1:], counts], axis=1)
    metadata = _metadata("histograms", data_class=2)
    tf.summary.write(name, tf.constant(bins, tf.float64), step=step, metadata=metadata)


def _metadata(plugin, data_class):
    """Which of TensorBoard's plugins shows a tensor; its classes are 1, scalars, and 2, tensors."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    metadata.data_class = data_class
    return metadata
