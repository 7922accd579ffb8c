"""Which commit of a data set of the Hugging Face hub a recipe means: the newest one is another one
tomorrow.
"""

from __future__ import annotations

import re

from fewstep.errors import UserError

SECONDS = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never means anything else."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set is now (its newest for None).

    None where the hub cannot be asked.

    Raises ``UserError`` where the hub has no such set or revision.
    """
    if is_commit(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # Its base is the error of the HTTP library, which has been another from release to release.
    unreachable: tuple[type[Exception], ...] = (
        OSError,
        *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
    )
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=SECONDS).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        which = "" if revision is None else f" with a revision '{revision}'"
        raise UserError(
            f"data set '{name}': the hub has none of this name{which} that may be read; check 'data.name' "
            "and 'data.revision', or log in."
        ) from error
    except unreachable:
        return None
