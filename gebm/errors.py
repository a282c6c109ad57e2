"""What a user is told in one line."""

__all__ = ["InputError", "LostProcess"]


class InputError(ValueError):
    """Bad input from the user: a flag, a file, a folder, a checkpoint.

    The message is one line that says what is wrong, where, what is allowed and how to mend it.
    The command line prints it and exits with code 2; from Python it is an ordinary `ValueError`.
    """


class LostProcess(RuntimeError):
    """Another of the processes that work together has ended. The command line prints the one line and exits with 1."""
