import math


def fading(step):
    return 1 / math.sqrt(1 + step)


def checked(step):
    if step < 0:
        raise ValueError(f"step {step} is negative")
    return step
