"""For mkdocstrings: a room lists the names that it hands on as links; each is documented once, where it is defined."""

from typing import Any

import griffe


class PublicNames(griffe.Extension):
    """Turn the imported names of a package's ``__init__`` into one sentence of links."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Called once for each of the two packages, when all of it is read."""
        for room in pkg.modules.values():
            self._visit(room)

    def _visit(self, module: griffe.Module) -> None:
        if module.is_alias or not module.is_init_module:
            return
        for child in module.modules.values():
            self._visit(child)
        handed_on = [member for member in module.members.values() if member.is_alias and member.is_public]
        names = [_link(alias) for alias in handed_on if alias.target_path.startswith(f"{module.path}.")]
        for alias in handed_on:
            module.del_member(alias.name)
        if names and module.docstring is not None:
            module.docstring.value += f"\n\nThe room hands on {', '.join(names)}."


def _link(alias: griffe.Alias) -> str:
    """A link to where the name is documented, if it is."""
    code = f"`{alias.name}`"
    return f"[{code}][{alias.target_path}]" if alias.final_target.has_docstring else code
