"""What a program uses while it runs.

`api.open` makes a `session.Session`, with which a program declares what is saved and marks its safe points. The
`driver` asks the protocol at each of them whether to cut; `epoch` owns the epoch in progress, and `regions` what is
saved. It is called by the program and by `mpickpt run`, and knows neither MPI nor HDF5 nor the native core but through
their owners.
"""
