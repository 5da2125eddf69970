"""The error for mistakes that the user can correct."""


class InputError(Exception):
    """The user's input is wrong.

    The message is one line: what is wrong, where, and what would be right.
    The command line prints it and exits with status 2.
    """
