"""Restores an epoch when a program starts again.

`choose` selects the epoch, `sources` provides its arrays and objects, and `lazy` loads arrays while the program
computes. It is called by the session, and knows nothing of cuts.
"""
