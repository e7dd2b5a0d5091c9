"""What a run notes of its checkpoints, and the page that is drawn of it.

A `recorder` of each rank writes `notes`, `files` says where they lie, `figures` are reckoned from them, and `page` and
`pictures` show these. It is called by the session and by `mpickpt report`, and knows nothing of what is saved.
"""
