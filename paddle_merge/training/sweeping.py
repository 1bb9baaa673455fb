"""Sweep between two models with a file that doesn't name them: a training knows its checkpoint only when it ends."""

from __future__ import annotations

import os
import tempfile

import yaml

from ..errors import ConfigError, MergeError


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
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(file))
        with open(copy, "w", encoding="utf-8") as stream:
            stream.write(text)
        sweep_spec(read_file(copy))
    return text


def _text(value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", value)


def swept(file: str, pre: str, aligned: str, output: str) -> str:
    """Sweep as a file says; return the path of the recipe that is picked. output: the folder for report and picture.

    Paths in the file are relative to its folder, so a filled-in copy is beside it meanwhile. Raises MergeError.
    """
    from ..search.asked import Asked
    from ..search.report.summary import BEST
    from ..search.sweep import sweep

    text = filled(file, os.path.abspath(pre), "+".join(os.path.abspath(part) for part in aligned.split("+")))
    handle, copy = tempfile.mkstemp(prefix=".sweep-", suffix=".yaml", dir=os.path.dirname(os.path.abspath(file)))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        sweep(Asked(copy, output, overwrite=True), progress=False)
    except MergeError as error:
        raise type(error)([problem.replace(copy, file) for problem in error.problems]) from error
    finally:
        os.remove(copy)
    return os.path.join(output, BEST)
