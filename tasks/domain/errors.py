"""The tree of errors that a user can mend; everything else that is raised is a fault of ours.

AutoLabelError
├── SpecError          the experiment spec or an override is wrong; lists every problem
│   └── ClaimedError   another process works in a folder that the spec names
│       └── LostClaimError  it took the folder over, from a run that did not answer
├── PromptError        a phrase cannot be asked (untokenisable, too long)
├── CheckpointError    a model's files are missing, encrypted, or of another architecture
├── ImageError         one image cannot be read; recorded per image, never ends a run
├── FormatError        an annotation or prompt file does not follow its format
├── ArtifactError      the store holds something that cannot be used
├── ServerError        the Prefect server cannot be started or reached
└── StoppedError       nobody waits for this work any more: the run has ended otherwise
"""


class AutoLabelError(Exception):
    """A problem that the user can mend: the message says what, where, what was expected, and the way out."""


class SpecError(AutoLabelError):
    """The experiment spec or an override is wrong; the message lists every problem."""


class ClaimedError(SpecError):
    """Another process works in a folder of the spec; the message says who, and how to proceed."""


class LostClaimError(ClaimedError):
    """A run that was suspended or cut off finds that its folder is another's by now; it writes nothing more there."""


class PromptError(AutoLabelError):
    """A phrase cannot be asked: its tokens are empty, unknown, or too many."""


class CheckpointError(AutoLabelError):
    """A checkpoint is missing, encrypted, damaged, or of an architecture that is not supported."""


class ImageError(AutoLabelError):
    """One image cannot be read or decoded."""


class FormatError(AutoLabelError):
    """A file does not follow its format."""


class ArtifactError(AutoLabelError):
    """The artifact store cannot be used, or holds an artifact of a newer format."""


class ServerError(AutoLabelError):
    """The Prefect server cannot be started or reached."""


class StoppedError(AutoLabelError):
    """Work was given up because the run that it was for has ended."""
