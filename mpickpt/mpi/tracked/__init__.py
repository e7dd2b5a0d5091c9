"""The communicator that counts the messages of a program, `ckpt.comm`, and all objects that it returns.

`traffic` is what the tracked communicators of a session share. It is called by the program, and by the
coordinator at a cut.
"""
