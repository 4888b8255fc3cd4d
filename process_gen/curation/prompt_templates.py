"""The words in which remote models are asked: jinja2 files that users can edit.

A file holds two blocks, `system` and `user` (a drafter's has `user` only). A folder of the user's
own comes before the packaged one, file by file. The filter `quoted` writes a text as a JSON string,
so that whatever a prompt says stays a quotation.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2

from process_gen.core.errors import ConfigError

FOLDER = Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A template and what identifies it.

    Attributes:
      name: file name without its ending.
      fingerprint: 16 hex digits of the file's bytes.
    """

    name: str
    fingerprint: str
    _template: jinja2.Template

    def render(self, **values: Any) -> tuple[str, str]:
        """(system, user) texts; the first is empty where the file has no such block.

        Raises:
          ConfigError: the template uses a name that is not among `values`, or fails otherwise.
        """
        context = self._template.new_context(values)
        texts = []
        for name in ("system", "user"):
            block = self._template.blocks.get(name)
            try:
                texts.append("".join(block(context)).strip() if block else "")
            except jinja2.TemplateError as error:
                raise ConfigError(f"template {self.name}.j2, block {name}: {error}") from error
        return texts[0], texts[1]


@functools.cache
def _environment(folders: tuple[str, ...]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # plain text for a language model, no markup
    )
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment


def load_template(name: str, folder: str = "") -> PromptTemplate:
    """Reads a template from the user's `folder` or, where it has none of that name, the package's.

    Raises:
      ConfigError: no such folder or template, or a template that jinja2 cannot read.
    """
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"remote.templates: {folder} is not a folder")
    folders = (folder, str(FOLDER)) if folder else (str(FOLDER),)
    try:
        template = _environment(folders).get_template(f"{name}.j2")
    except jinja2.TemplateNotFound as error:
        raise ConfigError(f"no template {name}.j2 in {' or '.join(folders)}") from error
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.message}") from error
    if "user" not in template.blocks:
        raise ConfigError(f"{template.filename} has no block 'user'")
    data = Path(str(template.filename)).read_bytes()
    return PromptTemplate(name, hashlib.sha256(data).hexdigest()[:16], template)
