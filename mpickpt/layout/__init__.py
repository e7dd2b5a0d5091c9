"""What is saved, as plain values: arrays, their shares of global arrays, and where they lie in memory.

It is called by whoever saves or reads, and does no input or output.
"""
