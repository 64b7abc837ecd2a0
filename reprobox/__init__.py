"""reprobox: PyTorch training in a box that gives the same bits every time, and proves it."""

__version__ = "0.1.0"
__all__ = ["__version__"]
