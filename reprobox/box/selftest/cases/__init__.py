"""What the self-test computes: a module for each family of operations, and ``table`` with one line per case.

A case is a small function. It gets a :class:`~reprobox.box.selftest.case.Bench` and returns the tensors that are
compared: outputs and gradients. Shapes are large enough to take the paths that run on several threads, and are no powers
of two, so that the last block of a kernel is a short one.
"""
