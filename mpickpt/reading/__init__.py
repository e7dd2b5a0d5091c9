"""Reading, comparing and archiving checkpoints without MPI.

Users work with `checkpoint.Checkpoint`. This folder is called by the command line, by a restart and by users, and knows
nothing of sessions.
"""
