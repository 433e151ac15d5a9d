"""The command line, ``tf-dynidx``: train, compare and search without writing code."""
