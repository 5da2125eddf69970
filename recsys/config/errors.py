"""The error that a person can mend."""


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line: what is wrong, where, and what would be right.
    The command line prints it and exits with status 2.
    """
