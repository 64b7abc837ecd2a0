"""Everything that can be typed, set or written into a project, right and wrong, and a world to try it in."""
