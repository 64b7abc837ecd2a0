"""One handle of NVML, asked question by question."""

from __future__ import annotations

from typing import Any

from reprobox.gpus.nvml_errors import UNUSABLE, fault

__all__ = ["Device"]


class Device:
    """A GPU or a MIG instance as NVML has it.

    :param nvml: the ``pynvml`` module; a machine without a driver never imports it.
    :param handle: NVML's; ``None`` where it would not give one, and then nothing is answered.
    :param fault: why it cannot be used. Kept up to date: any answer can be the one that says so.
    """

    def __init__(self, nvml: Any, handle: Any, fault: str | None = None) -> None:
        self.nvml = nvml
        self.handle = handle
        self.fault = fault
        self.uuid: str = ""
        self.bus_id: str | None = None

    def ask(self, question: str, *arguments: Any) -> Any:
        """Return the answer of this function of NVML, or ``None`` where the driver or the GPU has none."""
        answer, code = self.attempt(question, *arguments)
        if code in UNUSABLE and self.fault is None:
            self.fault = fault(code)
        return answer

    def ask_any(self, questions: tuple[str, ...], *arguments: Any) -> Any:
        """Return the first answer to one of several functions: drivers learn new ones, and forget old ones."""
        answers = (self.ask(question, *arguments) for question in questions)
        return next((answer for answer in answers if answer is not None), None)

    def ask_beside(self, question: str, other: Device, *arguments: Any) -> Any:
        """Return the answer about this device and another; an error of it can be either's, and is laid to neither."""
        return self.attempt(question, other.handle, *arguments)[0]

    def attempt(self, question: str, *arguments: Any) -> tuple[Any, int | None]:
        """Return the answer, or ``None`` and the code NVML gave instead, where it gave one."""
        call = getattr(self.nvml, question, None)
        if self.handle is None or call is None:  # bindings know only the functions of their own time
            return None, None
        try:
            return call(self.handle, *arguments), None
        except self.nvml.NVMLError as error:
            return None, error.value
        # The bindings' own word for a function that the driver lacks; a text of the driver's that is not UTF-8.
        except (self.nvml.NVMLLibraryMismatchError, UnicodeDecodeError):
            return None, None
