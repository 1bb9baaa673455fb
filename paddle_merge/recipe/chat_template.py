"""Name and check the chat templates that a recipe can ask for."""

from __future__ import annotations

import functools
from pathlib import Path

from ..parsing import nearest

AUTO = "auto"


TEMPLATES = Path(__file__).parent / "templates"


def names() -> list[str]:
    """Return the names of the chat templates that come with this package."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def mistake(value: str) -> str | None:
    """Return what is wrong with a chat template, as the end of a sentence; None if nothing is.

    value: "auto", the name of a template of `names`, or Jinja text.
    """
    if "{" in value:
        return syntax_error(value)
    known = [AUTO, *names()]
    if value in known:
        return None
    named = f"{', '.join(known)}{nearest(value, known)}"
    return f"{value!r} is neither a Jinja template, which contains {{{{ ... }}}}, nor one of {named}"


@functools.lru_cache(64)
def syntax_error(template: str) -> str | None:
    """Return what is wrong with the syntax of a Jinja template, as the end of a sentence; None if nothing is.

    Nothing of the template is run, and no constant is computed, since it may come from an untrusted source.
    """
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """Parse {% generation %} ... {% endgeneration %}, by which transformers marks the assistant's text."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    extensions: list[type[jinja2.ext.Extension]] = [Generation, jinja2.ext.LoopControlExtension]
    try:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(optimized=False, extensions=extensions)
        environment.compile(template)
    except jinja2.TemplateSyntaxError as error:
        return f"is not Jinja: {str(error.message).rstrip('.')} (in line {error.lineno} of the template)"
    except SyntaxError as error:  # of the Python it becomes: break outside a loop
        return f"is not Jinja: {error.msg}"
    except RecursionError:
        return "is nested too deeply"
    return None
