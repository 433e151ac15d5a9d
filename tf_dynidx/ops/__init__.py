"""Pure functions of tensors: node masses, frontier, draws, leaf upkeep, change regression.

Nothing here holds state, imports Keras or draws a random number without being given its seed. All
shapes that the arguments fix are static, so that every function compiles with XLA.
"""
