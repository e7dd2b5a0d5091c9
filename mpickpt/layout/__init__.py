"""What is saved, as plain values: arrays, their parts of global arrays, and their places in memory.

It is called by all code that saves or reads, and does no I/O.
"""
