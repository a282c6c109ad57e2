"""The one exception for input a user can mend."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input from the user: a flag, a file, a folder, a checkpoint.

    The message is one line that says what is wrong, where, what is allowed and how to mend it.
    The command line prints it and exits with code 2; from Python it is an ordinary `ValueError`.
    """
