"""The signals that a session handles, and what happens to their handlers.

`termination` handles SIGTERM, `takeover` finds handlers that other code installed later, and `forks` handles forked
children. It is called only by the session.
"""
