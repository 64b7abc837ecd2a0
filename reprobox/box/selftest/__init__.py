"""The determinism self-test: whether this machine, with this image and recipe, gives the same bits again.

``cases`` holds what is computed and the table of it, ``knobs`` reads the recipe back, ``measure`` turns tensors into
what two machines can compare, ``canary`` shows that the comparison can fail, ``runner`` brings them together in two
processes. It runs in a process of its own before the command, and imports nothing of the user's.
"""
