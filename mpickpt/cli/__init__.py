"""The command line: one module for each verb, whose docstring is its help."""
