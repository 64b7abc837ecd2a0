"""What the program does to the recipe: reseeds, flags turned back, unseeded generators, and entropy drawn on purpose.

Each function of a library that can undo the recipe is wrapped right after the import. A wrapper notes who called it and
does what the library would; it changes the outcome in two cases only: a generator that would have started from the
operating system's entropy starts from a stream of the recipe's, and under ``force_seed`` a seed is folded into the
recipe's. Where our half of a wrapper fails, the library's half is done all the same.
"""

import os
import sys

_hook = sys.modules["_reprobox_hook"]
receipt = _hook.load("receipt")
seeding = _hook.load("seeding")

NONDETERMINISTIC = "does not have a deterministic implementation"
ENTROPY_MODULES = (os.sep + "random.py", os.sep + "secrets.py", os.sep + "uuid.py")
"""Standard-library modules that hand entropy on to their caller, who is the one to name."""

TORCH = f"-packages{os.sep}torch{os.sep}"
INTERNAL = (TORCH, f"-packages{os.sep}numpy{os.sep}")

_streams = [0]


def wrap(owner, name, make):
    """Replace ``owner.name`` by what ``make(original)`` returns, dressed as the original; once."""
    original = getattr(owner, name, None)
    if original is None or hasattr(original, "reprobox_original"):
        return
    wrapper = make(original)
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        value = getattr(original, attribute, None)
        if value is not None:
            setattr(wrapper, attribute, value)
    wrapper.reprobox_original = original
    setattr(owner, name, wrapper)


def guarded(ours, *arguments):
    """Return what ``ours`` returns; where it fails, say so and return ``None``: the user's program comes first."""
    try:
        return ours(*arguments)
    except Exception as error:
        _hook.report_failure(f"{ours.__name__.strip('_')} failed", error)
        return None


def fresh_bits(count, what):
    """Return the next ``count`` bits of the recipe's stream for generators that the program left unseeded."""
    _streams[0] += 1
    return seeding.derive_bits(count, seeding.process_seed(_hook.recipe, _hook.lineage), what, _streams[0])


def note_unseeded(what, file, line, origin="user"):
    """Record a generator made or reset without a seed."""
    receipt.note("unseeded", generator=what, file=file, line=line, origin=origin)


def seed_wrapper(generator, original):
    """Return a wrapper of a global ``seed(value)`` function: reports it, and folds or supplies the value."""

    def seed(*arguments, **options):
        value = arguments[0] if arguments else next(iter(options.values()), None)
        ours = guarded(_seed_instead, generator, value)
        return original(*arguments, **options) if ours is None else original(ours)

    return seed


def _seed_instead(generator, value):
    """Report that ``generator`` is seeded with ``value``; return the seed that takes its place, or ``None``."""
    file, line, origin = receipt.caller()
    if origin == "stdlib" or _is_internal(file):
        return None
    seeding.users_own.add(generator)
    if value is None:
        note_unseeded(f"{generator} (reset without a seed)", file, line, origin)
        return fresh_bits(32, generator)
    if _hook.recipe.get("force_seed") == "on":
        folded = seeding.derive(seeding.process_seed(_hook.recipe, _hook.lineage), "fold", repr(value))
        receipt.note("reseed", generator=generator, value=repr(value), folded=folded, file=file, line=line)
        return folded
    receipt.note("reseed", generator=generator, value=repr(value), file=file, line=line)
    return None


def _bits_instead(count, what, through=()):
    """Return ``count`` bits of the recipe's for an unseeded generator, or ``None`` where real entropy is meant.

    The standard library keeps it (tempfile: two ranks must not agree on a temporary name), and so do torch and numpy.
    """
    file, line, origin = receipt.caller(through=through)
    if origin == "stdlib" or _is_internal(file):
        return None
    note_unseeded(what, file, line, origin)
    return fresh_bits(count, what)


def _is_internal(file):
    """Say whether ``file`` belongs to the libraries themselves (DataLoader's workers seed through all three)."""
    return any(part in file for part in INTERNAL)


# --- random ---------------------------------------------------------------------------------------------------------


def watch_random(module, recipe):
    """Watch Python's global generator, instances made without a seed, and entropy taken from the operating system."""
    del recipe
    wrap(module, "seed", lambda original: seed_wrapper("random", original))
    wrap(module.Random, "seed", _instance_seed)
    _watch_entropy(module)
    receipt.at_exit(lambda state: state["generators"].update(random=digest(seeding.random_state(module))))


def _instance_seed(original):
    def seed(self, a=None, version=2):
        if a is None and type(self).__name__ != "SystemRandom":
            a = guarded(_bits_instead, 256, "random.Random", (os.sep + "random.py",))
        return original(self, a, version)

    return seed


def _watch_entropy(random):
    """List draws of real entropy through SystemRandom and secrets as well, which hold os.urandom under another name."""
    random._urandom = os.urandom


def note_entropy():
    """List a draw of real entropy by user code; it stays random."""
    file, line, origin = receipt.caller(through=ENTROPY_MODULES)
    if origin == "user":
        receipt.note("entropy", source="os.urandom", file=file, line=line)


# --- numpy ----------------------------------------------------------------------------------------------------------


def watch_numpy(module, recipe):
    """Watch numpy's global generator, and make unseeded ones (default_rng, RandomState, SeedSequence) reproducible."""
    del recipe
    wrap(module, "seed", lambda original: seed_wrapper("numpy", original))
    bits = sys.modules["numpy.random.bit_generator"]

    def make(original):
        def randbits(count):
            # numpy's compiled frames do not show, so the nearest frame is who asked for a generator.
            ours = guarded(_bits_instead, count, "numpy.random")
            return original(count) if ours is None else ours

        return randbits

    _replace_randbits(bits, make)
    _watch_legacy_seeding(module)
    receipt.at_exit(lambda state: state["generators"].update(numpy=digest(seeding.numpy_state(module))))


def _replace_randbits(bits, make):
    original = bits.randbits
    if not hasattr(original, "reprobox_original"):
        wrapper = make(original)
        wrapper.reprobox_original = original
        bits.randbits = wrapper


def _watch_legacy_seeding(module):
    """Take the note of an unseeded generator back for ``RandomState(5)``: it makes one, and seeds it right afterwards."""

    def make(original):
        def _legacy_seeding(self, seed):
            if seed is not None and self is not module.mtrand._rand._bit_generator:
                guarded(_take_back)
            return original(self, seed)

        return _legacy_seeding

    _replace_method(module.MT19937, "_legacy_seeding", make)


def _take_back():
    file, line, origin = receipt.caller()
    receipt.take_back("unseeded", generator="numpy.random", file=file, line=line, origin=origin)


# --- torch ----------------------------------------------------------------------------------------------------------


def watch_torch(torch, recipe):
    """Watch torch's generators, its determinism flags, ops without a deterministic kernel, and process groups."""
    for owner in (torch, torch.random):
        wrap(owner, "manual_seed", lambda original: seed_wrapper("torch", original))
        wrap(owner, "seed", lambda original: _unseeding(original, "torch"))
    for name in ("manual_seed", "manual_seed_all"):
        wrap(torch.cuda, name, lambda original: seed_wrapper("torch", original))
    for name in ("seed", "seed_all"):
        wrap(torch.cuda, name, lambda original: _unseeding(original, "torch.cuda"))
    _watch_generator_class(torch)
    receipt.set_fields(flags={"start": flags(torch), "exit": None})
    _watch_flags(torch)
    _watch_refusals(recipe)
    _watch_distributed(torch, recipe)
    receipt.at_exit(lambda state: _finish_torch(torch, state))


def _unseeding(original, name):
    """``torch.seed()`` and its like ask for entropy; under the recipe they get the next bits of its stream."""

    def seed():
        value = guarded(_bits_instead, 32, f"{name}.seed()")
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
            value = guarded(_bits_instead, 32, "torch.Generator.seed()")
            if value is None:
                return original(self)
            self.manual_seed(value)
            return value

        return seed

    _replace_method(torch._C.Generator, "seed", make)


def _replace_method(kind, name, make):
    """Replace a method of a compiled class by what ``make(original)`` returns; once.

    Such a class takes no attributes, so its own dictionary is written; CPython keeps a method cache that must be told.
    """
    import ctypes
    import gc

    (names,) = (d for d in gc.get_referents(kind.__dict__) if isinstance(d, dict) and name in d)
    original = names[name]
    if hasattr(original, "reprobox_original"):
        return
    names[name] = make(original)
    names[name].reprobox_original = original
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


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


def _watch_flags(torch):
    for owner, name in (
        (torch, "use_deterministic_algorithms"),
        (torch, "set_deterministic_debug_mode"),
        (torch, "set_num_threads"),
        (torch, "set_float32_matmul_precision"),
    ):
        wrap(owner, name, lambda original: _flag_wrapper(torch, original))
    properties = vars(type(torch.backends.cudnn))
    for name in ("deterministic", "benchmark", "enabled", "allow_tf32"):
        wrap(properties[name], "setter", lambda original: _flag_wrapper(torch, original))
    kind = type(torch.utils.deterministic)
    fill = vars(kind).get("fill_uninitialized_memory")
    if isinstance(fill, property) and fill.fset is not None:
        kind.fill_uninitialized_memory = property(fill.fget, _flag_wrapper(torch, fill.fset), doc=fill.__doc__)


def _flag_wrapper(torch, original):
    """Return a wrapper of a setter that notes each flag which it changed, and who asked for it."""

    def setter(*arguments, **options):
        before = guarded(flags, torch)
        result = original(*arguments, **options)
        if before is not None:
            guarded(_note_changes, torch, before)
        return result

    return setter


def _note_changes(torch, before):
    for name, value in flags(torch).items():
        if before.get(name) != value:
            file, line, origin = receipt.caller(through=(TORCH,))
            if origin != "stdlib":  # torch's own workers lower their thread count
                receipt.note("flag", flag=name, before=before.get(name), after=value, file=file, line=line)


def _watch_refusals(recipe):
    """List ops without a deterministic implementation: warned of, or (under strict) the end of the program."""
    import warnings

    def make(original):
        def show(message):
            guarded(_note_warning, message)
            return original(message)

        return show

    if recipe["profile"] == "warn":
        warnings.filterwarnings("default", message=f".*{NONDETERMINISTIC}")
    wrap(warnings, "_showwarnmsg", make)
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


def _watch_distributed(torch, recipe):
    """Follow a rank that is learned late, and report splits that the ranks would disagree on."""
    group = sys.modules.get("torch.distributed.distributed_c10d")
    if group is not None:
        for owner in (group, torch.distributed):
            wrap(owner, "init_process_group", lambda original: _group_wrapper(torch, original, recipe))
    data = sys.modules.get("torch.utils.data")
    if data is not None and recipe.get("rank_seeds") != "same":
        for owner in (data, data.dataset):
            wrap(owner, "random_split", lambda original: _split_wrapper(torch, original))
        wrap(data.RandomSampler, "__init__", lambda original: _sampler_wrapper(torch, original))


def _group_wrapper(torch, original, recipe):
    def init_process_group(*arguments, **options):
        result = original(*arguments, **options)
        guarded(seeding.learn_rank, torch.distributed.get_rank(), recipe)
        return result

    return init_process_group


def _ranks(torch):
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1


def _note_split(torch, what, generator):
    if _ranks(torch) > 1 and (generator is None or generator is torch.default_generator):
        file, line, _ = receipt.caller(through=(TORCH,))
        receipt.note("split", what=what, file=file, line=line)


def _split_wrapper(torch, original):
    def random_split(dataset, lengths, generator=torch.default_generator):
        guarded(_note_split, torch, "random_split", generator)
        return original(dataset, lengths, generator=generator)

    return random_split


def _sampler_wrapper(torch, original):
    def __init__(self, *arguments, **options):
        original(self, *arguments, **options)
        guarded(_note_split, torch, "RandomSampler", self.generator)

    return __init__


def _finish_torch(torch, state):
    state["flags"]["exit"] = flags(torch)
    state["threads"] = torch.get_num_threads()
    state["generators"]["torch"] = digest(seeding.torch_state(torch))
    if torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            state["generators"][f"cuda:{i}"] = digest(torch.cuda.get_rng_state(i).numpy().tobytes())


def digest(data):
    """Return the SHA-256 of ``data`` in hex."""
    return seeding.sha256(data).hexdigest()
