import os

from hypothesis import settings

# A first call compiles, so no example has a deadline; and each runs TensorFlow, so there are few.
settings.register_profile("few", deadline=None, max_examples=25)
# The same cases at every run of a continuous integration, so that it speaks of the change alone; new
# ones at every run by hand.
settings.register_profile("same", settings.get_profile("few"), derandomize=True)
settings.load_profile("same" if os.environ.get("CI") else "few")
