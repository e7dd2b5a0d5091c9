"""Going back to an epoch when a program starts again.

`choose` finds the epoch, `sources` where its arrays come from, and `lazy` loads them while the program computes. It is
called by the session, and knows nothing of cuts.
"""
