"""A build's reporter that keeps what it is told."""

from __future__ import annotations


class Said:
    """``lines`` holds what a person would be told, ``logged`` the tools' own output."""

    def __init__(self):
        self.lines, self.logged = [], []

    def say(self, line):
        self.lines.append(line)

    def progress(self, label, done, total):
        pass

    def log(self, line):
        self.logged.append(line)
