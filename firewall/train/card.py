"""The model card, rendered from the manifest and from measured results. No figure by hand."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from firewall.bundle.manifest import Manifest
from firewall.evaluation.formats import interval, percent
from firewall.screening.calibration import Calibration

#: Characters that start markup or end a table cell.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|])")


def render(manifest: Manifest, calibration: Calibration, evaluation: dict[str, Any]) -> str:
    """Render the card of a bundle as Markdown.

    Args:
        manifest: of the bundle.
        calibration: of the bundle.
        evaluation: results under these keys. `held_out`: false-positive rates, measured when the
            bundle was built. `reference`, optional: measured by the benchmarks on bundles of the
            same recipe. `suite`, optional: measured on this bundle; ignored beside a reference,
            which has its own. `augment`, optional: the worth of generated training images.

    """
    reference = evaluation.get("reference")
    lowest_rate = 1 / (calibration.units + 1)
    template = _environment().get_template("model_card.md.jinja")
    return template.render(
        manifest=manifest,
        calibration=calibration,
        cheap=calibration.detectors[: calibration.cheap],
        lowest_rate=lowest_rate,
        escalated=calibration.cascade(lowest_rate).escalated_share,
        evaluation=evaluation,
        reference=reference,
        suite=(evaluation if reference is None else reference).get("suite"),
        augment=evaluation.get("augment"),
    )


def render_table(name: str, figures: Any) -> str:
    """Render one table of the card: `false_positives`, `detection` or `suite`, as Markdown."""
    table = getattr(_environment().get_template("tables.md.jinja").module, name)
    return str(table(figures))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("firewall.train"),
        # With `finalize`, everything that is not Markup yet is escaped as Markdown.
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "interval": interval, "code": _code}
    return environment


def _escaped(value: Any) -> Markup:
    """Escape a value so that it stays on its line and is not read as markup."""
    if isinstance(value, Markup):
        return value
    return Markup(_MARKDOWN.sub(r"\\\1", _line(value)))


def _code(value: str) -> Markup:
    """Quote a value as code. Nothing can be escaped inside, so backquotes are replaced."""
    return Markup("`" + _line(value).replace("`", "'") + "`")


def _line(value: Any) -> str:
    """Replace line ends and control characters, which also reach terminals, by spaces."""
    return "".join(one if one.isprintable() else " " for one in str(value))
