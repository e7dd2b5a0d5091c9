"""The command line: one module for each verb; its docstring is the help of the verb."""
