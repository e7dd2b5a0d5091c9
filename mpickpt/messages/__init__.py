"""Messages that were in flight at a cut.

They are counted (`ledger`), saved (`inflight`), and delivered again after a restart (`replay`). It is called by the
tracked communicators, and knows nothing of MPI.
"""
