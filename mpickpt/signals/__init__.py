"""The signals that a session handles, and what becomes of their handlers elsewhere.

`termination` is SIGTERM, `takeover` finds handlers that somebody else installed later, and `forks` sees to forked
children. It is called by the session alone.
"""
