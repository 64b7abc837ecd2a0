"""What could be wrong with this machine, looked at one thing after the other: :data:`CHECKS`, and :func:`examine`."""

from reprobox.doctor.check import Check, Finding, Verdict, examine
from reprobox.doctor.patient import Patient
from reprobox.doctor.table import CHECKS

__all__ = ["CHECKS", "Check", "Finding", "Patient", "Verdict", "examine"]
