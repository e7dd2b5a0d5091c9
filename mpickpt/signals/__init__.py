"""The signals that a session handles, and what happens to their handlers.

`termination` handles SIGTERM, `takeover` finds handlers that other code installed later, `deferral` keeps signals that
come between two sessions of a program that has lost a rank, and `forks` handles forked children. It is called only by
the session.
"""
