"""Images in tar files as WebDataset lays them out: KEY.jpg, KEY.cls, KEY.json beside each other, many tars a set.

Headers are read once; after that any image is one read at a known place, so samples can be shuffled over all shards and
nothing is extracted to disk.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.sample import BadFile
from maskwright.plugins.vision.images import SUFFIXES
from maskwright.plugins.vision.sources import GROUP_NAMES, LABEL_NAMES, check_bytes, walk

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SIDE_FILES = (".cls", ".txt", ".json")
MAX_SIDE_BYTES = 2**20
"""Longest side file that is looked at."""
MAX_LABEL = 100
"""Longest text, in characters, that is a label; longer ones describe an image."""
MAX_OPEN = 64
"""Shards that a process keeps open."""
MEMBERS_LOOKED_AT = 64
BLOCK = 512


def holds_shards(path: Path) -> bool:
    """Whether a tar, or the first one of a folder, holds images among its first members."""
    if path.is_dir():
        first = next(walk(path, (".tar", *COMPRESSED_SUFFIXES)), None)
        return first is not None and holds_shards(path / first[0])
    if not path.is_file() or not path.name.lower().endswith((".tar", *COMPRESSED_SUFFIXES)):
        return False
    if not path.name.lower().endswith(".tar") or _compression(path):
        return True  # opening it says what to do
    try:
        with tarfile.open(path, "r:") as tar:
            for _ in range(MEMBERS_LOOKED_AT):
                member = tar.next()
                if member is None:
                    return False
                if member.isfile() and member.name.lower().endswith(SUFFIXES):
                    return True
    except (tarfile.TarError, OSError, ValueError):
        pass
    return False


def _compression(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(6)
    return next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), "")


class TarSource:
    """Images of one tar or of all tars of a folder, in order of name and place.

    About 40 bytes a sample and its key are kept: shard, place, size, label and group as numbers; each label's and
    group's text once.

    Args:
        label_key, group_key: keys of KEY.json that hold label and group; left out, those of a usual name.

    Raises:
        DataError: a compressed tar, or none that can be used.
    """

    def __init__(self, path: Path, label_key: str = "", group_key: str = "") -> None:
        self.root = path if path.is_dir() else path.parent
        self.bad_files: list[BadFile] = []
        found = walk(path, (".tar", *COMPRESSED_SUFFIXES)) if path.is_dir() else [(path.name, path.stat().st_size)]
        self.shards = [name for name, _ in found]
        self._label_keys = (label_key,) if label_key else LABEL_NAMES
        self._group_keys = (group_key,) if group_key else GROUP_NAMES
        self._texts: dict[str, int] = {}
        columns = [array("q") for _ in range(6)]  # shard, place, size, label, group, end of the name
        names = bytearray()
        for number, shard in enumerate(self.shards):
            self._index(number, self.root / shard, columns, names)
        tables = [np.frombuffer(column, np.int64) if column else np.zeros(0, np.int64) for column in columns]
        self._shard, self._label, self._group = (tables[i].astype(np.int32) for i in (0, 3, 4))
        self._place, self._size, self._name_end = tables[1], tables[2], tables[5]
        self._names = bytes(names)
        self._text = list(self._texts)
        del self._texts
        self._files: dict[int, int] = {}
        self._process = 0

    # the index -----------------------------------------------------------------------------------------------------

    def _index(self, number: int, shard: Path, columns: list[array], names: bytearray) -> None:
        compression = _compression(shard)
        if compression:
            raise DataError(
                shard,
                f"is compressed ({compression})",
                "a plain tar, in which single images can be found",
                "Unpack the compression only (gunzip, unxz ...): images are compressed already, so the tar grows little",
            )
        length = shard.stat().st_size
        current: list[tarfile.TarInfo] = []
        key = ""
        try:
            with tarfile.open(shard, "r:", errorlevel=0) as tar, shard.open("rb") as side:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # it would keep every header
                    problem = _problem(member, length)
                    if problem:
                        self.bad_files.append(BadFile(f"{shard}/{member.name}", problem))
                    if problem or not member.isfile():
                        continue
                    if (own := _key(member.name)) != key:
                        self._add(number, shard, key, current, side, columns, names)
                        key, current = own, []
                    current.append(member)
                end = tar.offset
        except (tarfile.TarError, OSError, ValueError) as error:
            self.bad_files.append(BadFile(str(shard), f"is broken or cut short ({error}); images before that are used"))
            end = None
        with shard.open("rb") as side:
            self._add(number, shard, key, current, side, columns, names)
            if end is not None:
                side.seek(end)
                mark = side.read(BLOCK)
                if len(mark) < BLOCK or any(mark):
                    reason = f"has no end mark at byte {end}: it is cut short or damaged; images before that are used"
                    self.bad_files.append(BadFile(str(shard), reason))

    def _add(
        self,
        number: int,
        shard: Path,
        key: str,
        members: list[tarfile.TarInfo],
        side: BinaryIO,
        columns: list[array],
        names: bytearray,
    ) -> None:
        """Add the sample of one key: its image, with label and group from the files beside it."""
        images = [member for member in members if member.name.lower().endswith(SUFFIXES)]
        plain = [member for member in images if member.name[len(key) :].count(".") == 1]
        if not images:
            return
        # KEY.jpg is the image; KEY.seg.png and the like belong to it and are left alone
        chosen, *others = plain or images
        for other in others:
            self.bad_files.append(BadFile(f"{shard}/{other.name}", f'is a second image of the sample "{key}"'))
        label, group = self._described(key, members, side)
        names += chosen.name.encode("utf-8", "surrogateescape")
        row = (number, chosen.offset_data, chosen.size, self._code(label), self._code(group), len(names))
        for column, value in zip(columns, row, strict=True):
            column.append(value)

    def _code(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts)) if text else -1

    def _described(self, key: str, members: list[tarfile.TarInfo], side: BinaryIO) -> tuple[str, str]:
        """(label, group) by the files beside an image; KEY.cls counts before KEY.json, and that before KEY.txt."""
        texts = {}
        for member in members:
            ending = member.name[len(key) :].lower()
            if ending in SIDE_FILES and member.size <= MAX_SIDE_BYTES:
                side.seek(member.offset_data)
                texts[ending] = side.read(member.size).decode("utf-8", "replace").strip()
        facts = {}
        if ".json" in texts:
            try:
                found = json.loads(texts[".json"])
                facts = {str(name).lower(): value for name, value in found.items()} if isinstance(found, dict) else {}
            except (ValueError, RecursionError):
                pass  # the image is sound; it has no label
        label = texts.get(".cls") or _fact(facts, self._label_keys) or texts.get(".txt", "")
        return label if len(label) <= MAX_LABEL else "", _fact(facts, self._group_keys)

    # samples -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._place)

    def _member(self, index: int) -> str:
        start = self._name_end[index - 1] if index else 0
        return self._names[start : self._name_end[index]].decode("utf-8", "surrogateescape")

    def name(self, index: int) -> str:
        return f"{self.file(index)}/{self._member(index)}"

    def file(self, index: int) -> str:
        return os.path.join(self.root, self.shards[self._shard[index]])

    def label(self, index: int) -> str | None:
        return self._text[self._label[index]] if self._label[index] >= 0 else None

    def group(self, index: int) -> str:
        if self._group[index] >= 0:
            return self._text[self._group[index]]
        return f"{self.shards[self._shard[index]]}/{self._member(index)}"

    def content(self, index: int, most: int) -> bytes:
        size = int(self._size[index])
        check_bytes(self.name(index), size, most)
        try:
            content = os.pread(self._open(int(self._shard[index])), size, int(self._place[index]))
        except OSError as error:
            raise DataError(self.name(index), f"cannot be read ({error.strerror})") from error
        if len(content) != size:
            raise DataError(
                self.name(index), f"gives {len(content)} bytes", f"{size}", "The tar was cut; copy it again"
            )
        return content

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.content(index, 2**31))

    def _open(self, shard: int) -> int:
        """Descriptor of a shard; each process opens its own."""
        if self._process != os.getpid():
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(os.path.join(self.root, self.shards[shard]), os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]

    def close(self) -> None:
        if self._process == os.getpid():
            for descriptor in self._files.values():
                os.close(descriptor)
        self._files = {}

    def __del__(self) -> None:
        if getattr(self, "_files", None):
            self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}, "_process": 0}


def _key(name: str) -> str:
    """Name up to the first dot after the last slash: what the files of one sample have in common."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file[:1] + file[1:].partition(".")[0])


def _problem(member: tarfile.TarInfo, length: int) -> str:
    """Why an image of a tar cannot be used, or nothing."""
    if not member.name.lower().endswith((*SUFFIXES, *SIDE_FILES)):
        return ""
    if member.islnk() or member.issym():
        return "is a link, not a file"
    if member.issparse():
        return "is stored with holes"
    if not member.isfile():
        return ""
    if member.size < 0 or member.offset_data + member.size > length:
        return "reaches beyond the end of the tar"
    return "is empty" if member.size == 0 and member.name.lower().endswith(SUFFIXES) else ""


def _fact(facts: dict, keys: tuple[str, ...]) -> str:
    value = next((facts[key.lower()] for key in keys if key.lower() in facts), "")
    return str(value) if isinstance(value, str | int | float) and value != "" else ""
