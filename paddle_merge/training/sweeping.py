"""Sweep between two models with a file that doesn't name them: a training knows its checkpoint only when it ends."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

import yaml

from ..checkpoints.adapters import absolute_spec
from ..errors import Attempts, ConfigError, MergeError

SWEPT = ("report.json",)  # what tells the folder of a sweep from one of somebody else


def filled(file: str, pre: str, aligned: str) -> str:
    """Return the text of a sweep file with these two models. Raises ConfigError if it is not such a file."""
    from ..search.spec import read_file
    from ..search.sweep_spec import sweep_spec

    try:
        with open(file, encoding="utf-8") as stream:
            document = yaml.compose(stream, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"sweep {file}: can't be read ({error})") from None
    pairs = document.value if isinstance(document, yaml.MappingNode) else []
    section = next((value for key, value in pairs if key.value == "sweep"), None)
    if not isinstance(section, yaml.MappingNode):
        raise ConfigError(f"sweep {file}: has no section sweep")
    ends = {"pre": pre, "aligned": aligned}
    section.value = [(key, value) for key, value in section.value if key.value not in ends]
    section.value += [(_text(name), _text(path)) for name, path in ends.items()]
    # Nodes, not values: a range such as 0:1:0.1 is a number of YAML 1.1, to base 60.
    text: str = yaml.serialize(document, Dumper=yaml.SafeDumper, allow_unicode=True)
    with _copy(file, text) as copy:
        sweep_spec(read_file(copy))
    return text


@contextlib.contextmanager
def _copy(file: str, text: str) -> Iterator[str]:
    """Yield the path of a filled-in copy of a sweep file, beside it: paths in the file are relative to its folder.

    Errors name the file itself. Raises ConfigError if no copy can be written.
    """
    folder = os.path.dirname(os.path.abspath(file))
    try:
        handle, copy = tempfile.mkstemp(prefix=".sweep-", suffix=".yaml", dir=folder)
    except OSError as error:
        raise ConfigError(f"sweep {file}: a filled-in copy can't be written beside it ({error.strerror})") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        yield copy
    except MergeError as error:
        raise type(error)([problem.replace(copy, file) for problem in error.problems]) from error
    finally:
        os.remove(copy)


def _text(value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", value)


def checked(file: str, reference: str) -> None:
    """Check, before a training, that its result can be swept: packages, samples, and what scores it. Raises MergeError."""
    from ..search.asked import Asked
    from ..search.scoring import evaluator_of
    from ..search.spec import read_file
    from ..search.sweep import check_packages
    from ..search.sweep_spec import sweep_spec

    reference = os.path.abspath(reference)
    with _copy(file, filled(file, reference, reference)) as copy, tempfile.TemporaryDirectory() as output:
        asked, read, attempt = Asked(copy, output), read_file(copy), Attempts()
        spec = sweep_spec(read)
        attempt(check_packages)
        asked.check(spec, read, attempt)
        attempt(evaluator_of, asked, read, spec)
        attempt.finish()


def swept(file: str, pre: str, aligned: str, output: str) -> str:
    """Sweep as a file says; return the name of the recipe that is picked. output: the folder for it, report and picture.

    Raises MergeError.
    """
    from ..search.asked import Asked
    from ..search.report.summary import BEST
    from ..search.sweep import sweep

    text = filled(file, os.path.abspath(pre), absolute_spec(aligned))
    with _copy(file, text) as copy:
        sweep(Asked(copy, output, overwrite=True), progress=False)
    return BEST
