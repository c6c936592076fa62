"""Write the tables of configuration.md from the configuration itself."""

from pathlib import Path

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from miriam.serve.config import Limits, ModelConfig, Ports, Security, ServerConfig, Tls, Trace

PAGE = Path(__file__).with_suffix(".md")
SECTIONS: dict[str, type[BaseModel]] = {
    "": ServerConfig,
    "models.NAME": ModelConfig,
    "ports": Ports,
    "limits": Limits,
    "security": Security,
    "security.tls": Tls,
    "trace": Trace,
}


def value(field: FieldInfo) -> str:
    """The default as a file would have it."""
    if field.is_required():
        return "must be given"
    default = field.default
    if isinstance(default, BaseModel):
        return "see below"
    if isinstance(default, ByteSize):
        return default.human_readable().replace(".0", "")
    return "" if default in (None, []) else f"{default}"


def table(section: str) -> str:
    """The keys of a section."""
    rows = [
        f"| `{section and section + '.'}{name}` | {value(field)} | {field.description} |"
        for name, field in SECTIONS[section].model_fields.items()
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])


def with_tables(page: str) -> str:
    """The page with its tables made anew."""
    for section in SECTIONS:
        begin, end = f"<!-- {section or 'top'} -->\n", "<!-- end -->"
        before, _, rest = page.partition(begin)
        page = before + begin + table(section) + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
