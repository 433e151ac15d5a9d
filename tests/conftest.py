from hypothesis import settings

# A first call compiles, so no example has a deadline; and each runs TensorFlow, so there are few.
settings.register_profile("few", deadline=None, max_examples=25)
settings.load_profile("few")
