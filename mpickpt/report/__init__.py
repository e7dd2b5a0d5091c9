"""The notes that a run takes of its checkpoints, and the page that shows them.

The `recorder` of each rank writes `notes`, `files` finds and reads them, `figures` are computed from them, and `page`
and `pictures` show them. It is called by the session and by `mpickpt report`, and knows nothing of what is saved.
"""
