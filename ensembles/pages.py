"""How pages are rendered: the report of a run, those of clusters and duplicates, that of a study."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from configs.errors import counted
from ensembles import wording


@cache
def page_environment() -> Environment:
    """What renders the pages of a run or a study: everything is escaped, and a name that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("ensembles", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "signed": wording.signed,
        "whole": wording.whole,
        "percent": wording.percent,
        "exact": wording.exact_percent,
        "span": wording.span,
        "counted": counted,
        "duration": wording.duration,
        "listing": wording.listing,
        "ending": wording.ending,
        "sentence": wording.sentence,
    }
    return environment
