"""GPUs: what there is, and what a person chose of it."""

from reprobox.gpus.inventory import Gpu, GpuProcess, Inventory, MigInstance
from reprobox.gpus.nvml import take_inventory
from reprobox.gpus.processes import with_runs
from reprobox.gpus.request import GpuRequest, allocation

__all__ = ["Gpu", "GpuProcess", "GpuRequest", "Inventory", "MigInstance", "allocation", "take_inventory", "with_runs"]
