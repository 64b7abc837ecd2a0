"""Watches torch: its generators, and ops without a deterministic kernel. Flags and process groups have their own modules."""

import sys

_hook = sys.modules["_reprobox_hook"]
receipt = _hook.load("receipt")
seeding = _hook.load("seeding")
watch = _hook.load("watch")
watch_flags = _hook.load("watch_flags")
watch_distributed = _hook.load("watch_distributed")

NONDETERMINISTIC = "does not have a deterministic implementation"
"""How PyTorch says it, in an error under *strict* and in a warning under *warn*."""


def apply(torch, recipe):
    """Watch torch's generators, its determinism flags, ops without a deterministic kernel, and process groups."""
    for owner in (torch, torch.random):
        watch.wrap(owner, "manual_seed", lambda original: watch.seed_wrapper("torch", original))
        watch.wrap(owner, "seed", lambda original: _unseeding(original, "torch"))
    for name in ("manual_seed", "manual_seed_all"):
        watch.wrap(torch.cuda, name, lambda original: watch.seed_wrapper("torch", original))
    for name in ("seed", "seed_all"):
        watch.wrap(torch.cuda, name, lambda original: _unseeding(original, "torch.cuda"))
    _watch_generator_class(torch)
    receipt.set_fields(flags={"start": watch_flags.flags(torch), "exit": None})
    watch_flags.apply(torch)
    _watch_refusals(recipe)
    watch_distributed.apply(torch, recipe)
    receipt.at_exit(lambda state: _finish(torch, state))


def _unseeding(original, name):
    """``torch.seed()`` and its like ask for entropy; under the recipe they get the next bits of its stream."""

    def seed():
        value = watch.guarded(watch.bits_instead, 32, f"{name}.seed()")
        if value is None:
            return original()
        seeding.users_own.add("torch")
        seeding.originals["torch"](value)
        return value

    return seed


def _watch_generator_class(torch):
    """Give ``torch.Generator.seed`` the recipe's stream."""

    def make(original):
        def seed(self):
            value = watch.guarded(watch.bits_instead, 32, "torch.Generator.seed()")
            if value is None:
                return original(self)
            self.manual_seed(value)
            return value

        return seed

    watch.replace_method(torch._C.Generator, "seed", make)


def _watch_refusals(recipe):
    """List ops without a deterministic implementation: warned of, or (under strict) the end of the program."""
    import warnings

    def make(original):
        def show(message):
            watch.guarded(_note_warning, message)
            return original(message)

        return show

    if recipe["profile"] == "warn":
        warnings.filterwarnings("default", message=f".*{NONDETERMINISTIC}")
    watch.wrap(warnings, "_showwarnmsg", make)
    previous = sys.excepthook

    def excepthook(kind, error, traceback):
        previous(kind, error, traceback)
        if isinstance(error, RuntimeError) and NONDETERMINISTIC in str(error):
            op = str(error).split(maxsplit=1)[0]
            file, line = _where(traceback)
            receipt.note("nondeterministic", op=op, file=file, line=line)
            sys.stderr.write(
                f"reprobox: {op} at {file}:{line} has no deterministic implementation here, and the profile strict "
                "promises one; use another op, or --profile warn to go on and have it listed\n",
            )

    sys.excepthook = excepthook


def _note_warning(message):
    text = str(message.message)
    if NONDETERMINISTIC in text:
        file = receipt._shown(message.filename)
        receipt.note("nondeterministic", op=text.split(maxsplit=1)[0], file=file, line=message.lineno)


def _where(traceback):
    """Return the file and line of the innermost frame of the user's in ``traceback``."""
    found = ("<unknown>", 0)
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if receipt.origin_of(name) == "user":
            found = (receipt._shown(name), traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def _finish(torch, state):
    state["flags"]["exit"] = watch_flags.flags(torch)
    state["threads"] = torch.get_num_threads()
    state["generators"]["torch"] = watch.digest(seeding.torch_state(torch))
    if torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            state["generators"][f"cuda:{i}"] = watch.digest(torch.cuda.get_rng_state(i).numpy().tobytes())
