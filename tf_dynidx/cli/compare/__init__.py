"""`tf-dynidx compare`: several miners on the same data, with the same encoder, seeds and budget."""
