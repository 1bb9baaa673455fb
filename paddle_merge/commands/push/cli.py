"""The command line of `python -m paddle_merge push`: flags -> PushConfig -> push."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..flags import CommandLine, fields_of
from ..run_line import run_line
from .config import PushConfig

HELP = """Upload a finished checkpoint or LoRA adapter to Hugging Face, AI Studio or ModelScope, with the hub's own library.

First checks that the folder is whole: its weights open, are as merge_lock.json says, and nothing of a stopped merge is left.
Then shows which files are uploaded and which are left out, such as optimizer states; --dry_run stops there, without a
network. A repository that doesn't exist is created, private unless --public is given. One that is public is only pushed to
with --public. Nothing that the repository has besides is removed.

If it is interrupted, run it again: files that the hub has stored are not sent a second time.

There is no flag for the token. Log in with the hub's library, or set its environment variable: HF_TOKEN,
AISTUDIO_ACCESS_TOKEN or MODELSCOPE_API_TOKEN. It is never printed or stored.
"""
FIELDS = fields_of(PushConfig, "folder")
LINE = CommandLine(
    name="push",
    fields=FIELDS,
    argument=("FOLDER", "The checkpoint or LoRA adapter."),
    help=HELP,
    examples=[
        ("Show what would be uploaded:", "./merged --to huggingface --repo me/merged --dry_run"),
        ("Upload into a private repository:", "./merged --to huggingface --repo me/merged"),
        (
            "Upload to a branch, without pictures:",
            "./merged --to modelscope --repo me/merged --revision v2 --exclude '*.png'",
        ),
    ],
    aliases={"repo_id": "repo", "branch": "revision", "commit_message": "message"},
    many=False,
    hint="; only the folder, the first word, is given without a flag",
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge push *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(folder: str | None, flags: dict[str, Any]) -> None:
    config = PushConfig(folder or "", **flags)
    config.check()
    from .run import push

    push(config)
