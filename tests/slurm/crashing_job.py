"""A program that crashes in step 150, however often it is started."""

import mpickpt

with mpickpt.open("crashing.ckpt") as ckpt:
    u = ckpt.array("u", 1000)
    for step in ckpt.range(1000):
        u += 1
        if step == 99:
            ckpt.request()
        if step == 150:
            raise FloatingPointError("the field is not finite")
