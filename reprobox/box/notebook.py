"""IPython's tip of the day, which a notebook's kernel draws from the program's own generator."""


def apply(name, module, recipe):
    """Have the just imported ``IPython.core.tips`` give its first tip, without a draw or a look at the calendar.

    A kernel makes its banner anew each time a client asks what it is, and a client asks until it is answered: under
    load three times or five, and ``random`` in the first cell began as many draws later.
    """
    del name, recipe
    first = module._tips["random"][0]

    def pick_tip():
        return first

    pick_tip.reprobox_original = module.pick_tip
    module.pick_tip = pick_tip
