"""The environment in which the templates of pages are rendered, with the filters that format their values."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from delt_hpc.report import formats

_FILTERS = {
    function.__name__: function
    for function in (
        formats.decimal,
        formats.spread,
        formats.signed,
        formats.count,
        formats.rate,
        formats.duration,
        formats.mebibytes,
        formats.millions,
        formats.moment,
    )
}


def environment(folder: Path, *, autoescape: bool) -> Environment:
    """An environment for the templates in `folder`; a name that a template does not know is an error."""
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= _FILTERS
    return made
