"""What runs inside the box: the entrypoint, the hook that reaches every Python process, and the recipe applied.

Everything here is standard library and Python 3.10 syntax, and imports nothing of the package but ``recipe`` and
``errors``: the image carries these files alone. ``hook`` and ``seeding`` import nothing of the package at all, because
they run in the user's interpreter, where another ``reprobox`` (or none) may be installed.
"""
