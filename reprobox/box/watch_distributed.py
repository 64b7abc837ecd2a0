"""Watches process groups: a rank that is learned late, and splits of the data that the ranks would disagree on."""

import os
import sys

_hook = sys.modules["_reprobox_hook"]
receipt = _hook.load("receipt")
seeding = _hook.load("seeding")
watch = _hook.load("watch")


def apply(torch, recipe):
    """Follow a rank that is learned late, and report splits that the ranks would disagree on."""
    group = sys.modules.get("torch.distributed.distributed_c10d")
    if group is not None:
        for owner in (group, torch.distributed):
            watch.wrap(owner, "init_process_group", lambda original: _group_wrapper(torch, original, recipe))
    data = sys.modules.get("torch.utils.data")
    if data is not None and recipe.get("rank_seeds") != "same":
        for owner in (data, data.dataset):
            watch.wrap(owner, "random_split", lambda original: _split_wrapper(torch, original))
        watch.wrap(data.RandomSampler, "__init__", lambda original: _sampler_wrapper(torch, original))


def _group_wrapper(torch, original, recipe):
    def init_process_group(*arguments, **options):
        result = original(*arguments, **options)
        watch.guarded(seeding.learn_rank, torch.distributed.get_rank(), recipe)
        return result

    return init_process_group


def _ranks(torch):
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1


def _note_split(torch, what, generator):
    if _ranks(torch) > 1 and (generator is None or generator is torch.default_generator):
        file, line, _ = receipt.caller(through=(watch.TORCH,))
        receipt.note("split", what=what, file=file, line=line)


def _split_wrapper(torch, original):
    def random_split(dataset, lengths, generator=torch.default_generator):
        watch.guarded(_note_split, torch, "random_split", generator)
        return original(dataset, lengths, generator=generator)

    return random_split


def _sampler_wrapper(torch, original):
    def __init__(self, *arguments, **options):
        original(self, *arguments, **options)
        watch.guarded(_note_split, torch, "RandomSampler", self.generator)

    return __init__
