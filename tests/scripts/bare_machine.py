"""A Python that has some packages with what they need, and nothing else: neither this project nor a network."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

# Runs a script under python -S -E -I, whose path has the given packages alone; any attempt to reach a host ends it.
WRAPPER = """
import os, runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"reached for the network: {event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(refuse)
site, script = sys.argv[1:3]
sys.path.append(site)
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


class BareMachine:
    """`run` runs scripts; the packages are links in `folder`."""

    def __init__(self, folder: Path, packages: Sequence[str]) -> None:
        self.folder = folder
        folder.mkdir()
        for found in _with_needs(packages):
            for name in _top_level(found):
                link = folder / name
                if not link.exists():
                    link.symlink_to(Path(str(found.locate_file(name))))

    def run(self, script: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """What `python SCRIPT ARGUMENTS` does there, in `cwd`."""
        command = [sys.executable, "-I", "-S", "-B", "-c", WRAPPER, str(self.folder), str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def _with_needs(packages: Sequence[str]) -> list[Distribution]:
    """The distributions of packages and, transitively, of all that they require here."""
    found: dict[str, Distribution] = {}
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # one for another platform
            continue
        needs = [Requirement(text) for text in found[name].requires or ()]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return list(found.values())


def _top_level(found: Distribution) -> set[str]:
    """Names below site-packages that belong to a distribution."""
    return {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}
