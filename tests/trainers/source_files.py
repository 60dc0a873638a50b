"""Small tables and folders for the tests of what is read from them."""

import pytest

from configs.errors import InputError
from configs.schema import DataConfig
from trainers.source import read_source

ROWS = ["id,path,label", "00123,a.jpg,mel", "NA,b.jpg,nev", "1e5,c d.jpg,nev", "null,sub/d.jpg,"]


def written(folder, name, lines, *, encoding="utf-8", end="\n"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def config(source, **options):
    return DataConfig(source=source, **{"positive_label": "mel", **options})


def error(data):
    with pytest.raises(InputError) as caught:
        read_source(data)
    return str(caught.value)


def touched(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
