"""Watches torch's flags of determinism and precision: their values, and who turns one back."""

import sys

_hook = sys.modules["_reprobox_hook"]
receipt = _hook.load("receipt")
watch = _hook.load("watch")

FLAG_GETTERS = {
    "deterministic_algorithms": lambda torch: ("off", "error", "warn")[
        torch.are_deterministic_algorithms_enabled() + torch.is_deterministic_algorithms_warn_only_enabled()
    ],
    "fill_uninitialized_memory": lambda torch: torch._C._get_deterministic_fill_uninitialized_memory(),
    "cudnn.deterministic": lambda torch: torch.backends.cudnn.deterministic,
    "cudnn.benchmark": lambda torch: torch.backends.cudnn.benchmark,
    "cudnn.enabled": lambda torch: torch.backends.cudnn.enabled,
    "cudnn.allow_tf32": lambda torch: torch.backends.cudnn.allow_tf32,
    "cuda.matmul.allow_tf32": lambda torch: torch.backends.cuda.matmul.allow_tf32,
    "float32_matmul_precision": lambda torch: torch.get_float32_matmul_precision(),
    "num_threads": lambda torch: torch.get_num_threads(),
}
"""Every flag the receipt shows at the start and at exit."""


def flags(torch):
    """Return the value of every flag now; one that this torch does not have is left out."""
    values = {}
    for name, get in FLAG_GETTERS.items():
        try:
            values[name] = get(torch)
        except (AttributeError, RuntimeError):  # noqa: PERF203  each getter may fail for itself
            continue
    return values


def apply(torch):
    """Watch every public setter of a flag, functions and properties."""
    for owner, name in (
        (torch, "use_deterministic_algorithms"),
        (torch, "set_deterministic_debug_mode"),
        (torch, "set_num_threads"),
        (torch, "set_float32_matmul_precision"),
    ):
        watch.wrap(owner, name, lambda original: _flag_wrapper(torch, original))
    properties = vars(type(torch.backends.cudnn))
    for name in ("deterministic", "benchmark", "enabled", "allow_tf32"):
        watch.wrap(properties[name], "setter", lambda original: _flag_wrapper(torch, original))
    kind = type(torch.utils.deterministic)
    fill = vars(kind).get("fill_uninitialized_memory")
    if isinstance(fill, property) and fill.fset is not None:
        kind.fill_uninitialized_memory = property(fill.fget, _flag_wrapper(torch, fill.fset), doc=fill.__doc__)


def _flag_wrapper(torch, original):
    """Return a wrapper of a setter that notes each flag which it changed, and who asked for it."""

    def setter(*arguments, **options):
        before = watch.guarded(flags, torch)
        result = original(*arguments, **options)
        if before is not None:
            watch.guarded(_note_changes, torch, before)
        return result

    return setter


def _note_changes(torch, before):
    for name, value in flags(torch).items():
        if before.get(name) != value:
            file, line, origin = receipt.caller(through=(watch.TORCH,))
            if origin != "stdlib":  # torch's own workers lower their thread count
                receipt.note("flag", flag=name, before=before.get(name), after=value, file=file, line=line)
