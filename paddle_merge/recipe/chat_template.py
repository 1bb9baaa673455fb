"""Name and check the chat templates that a recipe can ask for."""

from __future__ import annotations

import functools
from pathlib import Path

from ..parsing import nearest

AUTO = "auto"


TEMPLATES = Path(__file__).parent / "templates"


def names() -> list[str]:
    """Of our own templates."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def mistake(value: str) -> str | None:
    """What is wrong with "auto", the name of a template, or one in Jinja; to be said after what it is called."""
    if "{" in value:
        return syntax_error(value)
    known = [AUTO, *names()]
    if value in known:
        return None
    return (
        f"{value!r} is none of {', '.join(known)}{nearest(value, known)}, nor a template in Jinja, which holds {{{{ ... }}}}"
    )


@functools.lru_cache(64)
def syntax_error(template: str) -> str | None:
    """Nothing of the template is run, nor computed ahead: it may be a stranger's."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """transformers' own: what stands between {% generation %} and {% endgeneration %} is the assistant's."""

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
