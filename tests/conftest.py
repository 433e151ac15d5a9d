import os

from hypothesis import settings

from tf_dynidx.keras_world import IS_KERAS_3

# They import no Keras, which `index/test_imports.py` holds them to: in one of the two worlds is enough.
_WITHOUT_KERAS = ["index", "ops"]

# A first call compiles, so no example has a deadline; and each runs TensorFlow, so there are few.
settings.register_profile("few", deadline=None, max_examples=25)
# The same cases at every run of a continuous integration, so that it speaks of the change alone; new
# ones at every run by hand.
settings.register_profile("same", settings.get_profile("few"), derandomize=True)
settings.load_profile("same" if os.environ.get("CI") else "few")


def pytest_ignore_collect(collection_path, config):
    """Leaves out in Keras 2 what has nothing to do with Keras, unless it is asked for by name."""
    if IS_KERAS_3 or collection_path.name not in _WITHOUT_KERAS:
        return None
    asked_for = any(collection_path.name in str(argument) for argument in config.args)
    return None if asked_for else True
