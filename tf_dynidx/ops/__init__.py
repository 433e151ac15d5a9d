"""Pure functions of tensors: masses of nodes, frontier, draws, grouping, search, regression.

Nothing here holds state, imports Keras or draws a random number without being given its seed. All
shapes that the arguments fix are static, so that every function compiles with XLA.
"""
