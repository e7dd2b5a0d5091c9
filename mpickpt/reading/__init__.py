"""Checkpoints as files that are read, compared and archived, without MPI.

`checkpoint.Checkpoint` is what a user is given. It is called by the command line, by a restart and by users, and knows
nothing of sessions.
"""
