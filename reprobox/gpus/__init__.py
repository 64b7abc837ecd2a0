"""GPUs: what there is, and what a person chose of it."""

from reprobox.gpus.inventory import Gpu, Inventory, take_inventory
from reprobox.gpus.request import GpuRequest, allocation

__all__ = ["Gpu", "GpuRequest", "Inventory", "allocation", "take_inventory"]
