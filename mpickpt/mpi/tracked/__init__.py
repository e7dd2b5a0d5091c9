"""The communicator that counts the messages of a program, `ckpt.comm`, and all that it hands out.

`traffic` is what the tracked communicators of a session have in common. It is called by the program, and by the
coordinator at a cut.
"""
