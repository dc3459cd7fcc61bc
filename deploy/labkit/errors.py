"""The lab's own errors: each is shown to the user as one line.

LabError            something the lab needs is missing or failed; the text says what to do
  CommandFailed     a helper program ended with another status than 0
  TimedOut            something did not come about in time
"""


class LabError(Exception):
    """One line for the user: what failed, and what to do about it."""


class TimedOut(LabError):
    """Something did not come about in time."""


class CommandFailed(LabError):
    """A helper program failed.

    Args:
        argv0: its name.
        code: its exit status.
        output: the end of what it printed.
    """

    def __init__(self, argv0: str, code: int, output: str) -> None:
        tail = " | ".join(output.strip().splitlines()[-3:])
        super().__init__(f"{argv0} ended with status {code}: {tail}")
        self.code = code
        self.output = output
