"""Users' folders: the one function that lists them, and what it passes over. Only names are read, no pixels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from viny.runtime.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
ENDINGS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
# Endings of pictures and scans that are not read: whoever has such files expects them to be used.
PICTURES = re.compile(
    "hei[cf]|hif|avif|jxl|jp2|j2k|jp[xf]|gif|jfif|jpe|svg|ps[db]|xcf|ai|eps|pdf|ico|pcx|tga|dds|p[pgbnf]m|exr|hdr|"
    "raw|ne[fw]|nrw|cr[23w]|arw|sr[2w]|dng|orf|rw[2l]|raf|pef|x3f|3fr|iiq|dcm|dicom|nii|mh[ad]|nrrd|np[yz]|h5|hdf5|mat|"
    "fits?|czi|lif|nd2|lsm|svs|ndpi|mrxs|scn|vsi|oif|zarr|mp4|m4v|mov|avi|mkv|webm"
)
# Folders that systems and programs leave beside a user's files, often with small copies of them.
SYSTEM = frozenset(
    ("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "lost+found", "__pycache__")
) | {"system volume information"}
LEGEND = "classes.csv"  # lines of value,name, which viny writes beside masks that it makes
STORES = frozenset((".git", ".dvc", ".datalad", ".hg", ".svn"))  # their files are other files' contents or history
SMALL_COPIES = re.compile(r"(?:.*[-_. ])?thumb(?:nail)?s?", re.IGNORECASE)
SHOWN = 5  # names that a message lists


def check_name(name: str, where: Path) -> None:
    """Refuse a name that would break a list of names, a log, or a terminal."""
    if name.isprintable():
        return
    # Cc are control characters, Cs bytes that are not UTF-8, Zl and Zp separate lines.
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise InputError(f"{where}: the name {name!a} has control characters or is not UTF-8; rename it")


def few(names: Iterable[object]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def composed(name: str) -> str:
    """A name in Unicode's composed form: macOS may write é as e and an accent, other systems as one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


@dataclass
class Found:
    """What a folder and its subfolders hold.

    Attributes:
        folder: the folder.
        images: its image files, in the order of their paths.
        names: their paths below it, with '/' on every system.
        missing: links to images that lead to no file, such as those of git-annex and DVC before the content is fetched.
        passed_over: how many other files there are, by their ending in lower case; '' for none. The list of classes
            that viny writes beside masks is not counted.
        hidden: how many files have names that begin with a dot.
        unseen: hidden folders and those of the system, which are not entered.
        again: links to folders that are listed already.
        small: how many images have names, or lie in folders with names, as thumbnails have.
        subfolders: folders directly in it that were not entered, if only the folder itself was listed.
    """

    folder: Path
    images: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    unseen: list[Path] = field(default_factory=list)
    again: int = 0
    small: int = 0
    subfolders: list[Path] = field(default_factory=list)

    @property
    def pictures(self) -> dict[str, int]:
        """How many files are pictures of formats that are not read, by ending."""
        return {ending: count for ending, count in sorted(self.passed_over.items()) if PICTURES.fullmatch(ending)}

    def report(self) -> list[str]:
        """What was passed over, and what was taken that may not be meant, one line each; nothing if there is none."""
        lines = []
        if self.missing:
            lines.append(
                f"{self.folder}: {len(self.missing)} links that lead nowhere, left out: "
                f"{few(path.name for path in self.missing)}"
            )
        if pictures := self.pictures:
            lines.append(
                f"{self.folder}: {sum(pictures.values())} files have formats that are not read and are passed over: "
                f"{_counts(pictures)}; convert them to JPEG or PNG"
            )
        others = {ending: n for ending, n in sorted(self.passed_over.items()) if not PICTURES.fullmatch(ending)}
        said = [_counts(others)] * bool(others)
        said += [f"{self.hidden} hidden"] * bool(self.hidden)
        said += [f"folder {_with_count(path)}" for path in self.unseen[:SHOWN]]
        said += [f"{len(self.unseen) - SHOWN} more such folders"] * (len(self.unseen) > SHOWN)
        said += [f"{self.again} links to folders listed already"] * bool(self.again)
        if said:
            lines.append(f"{self.folder}: passed over besides: {', '.join(said)}")
        if self.small:
            lines.append(
                f"{self.folder}: {self.small} images are named as thumbnails, or lie in folders that are, and are "
                "taken like the others; move them away if they are small copies"
            )
        return lines


def _counts(endings: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {f'.{ending}' if ending else 'without an ending'}" for ending, count in endings.items())


def _with_count(folder: Path) -> str:
    """A folder's name, with the number of images in it and below."""
    name = folder.name if folder.name.isprintable() else ascii(folder.name)
    if folder.name in STORES:
        return name
    count = sum(_ending(file) in ENDINGS for _, _, files in os.walk(folder) for file in files)
    return f"{name} ({count} images)" if count else name


def _ending(name: str) -> str:
    """What follows the last dot, in lower case."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror or error}); give the right to read it, or move it away"
        ) from error


def _kind(entry: os.DirEntry[str]) -> str:
    """'folder', 'file', 'missing' for a link that leads to neither, or 'other', such as a pipe."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "missing" if entry.is_symlink() else "other"
    except OSError:  # a link to itself, or to where this user may not look
        return "missing"


def list_below(folder: Path, deep: bool = True) -> Found:
    """List the image files in a folder. This is the one function that lists users' folders.

    Hidden files and folders, those of the system, and files that are no images are passed over and counted. Each folder
    is listed once, whatever links lead to it, by its own path if that is below `folder`.

    Args:
        folder: the folder.
        deep: whether its subfolders are listed too, at any depth.

    Raises:
        InputError: no such folder, one that cannot be listed, or a name that cannot be written down.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected a folder of images ({', '.join(IMAGE_SUFFIXES)})")
    out = Found(folder)
    found: list[tuple[str, str, str]] = []  # in Unicode's composed form, as it is, and the whole path
    seen: set[tuple[int, int]] = set()
    todo, links = [("", os.fspath(folder))], []
    while todo or links:
        if not todo:  # links come last, in order, so that a folder's own path wins
            links.sort(reverse=True)
            todo.append(links.pop())
        above, here = todo.pop()
        entries = _entries(here)
        try:
            about = os.stat(here)
        except OSError as error:
            raise InputError(f"{here}: cannot be listed ({error.strerror}); has it been moved?") from error
        if about.st_ino:  # some network file systems have none
            if (about.st_dev, about.st_ino) in seen:
                out.again += 1
                continue
            seen.add((about.st_dev, about.st_ino))
        small = bool(SMALL_COPIES.fullmatch(os.path.basename(here)))
        for entry in entries:
            name, kind = entry.name, _kind(entry)
            if name[0] == "." or (kind == "folder" and name.lower() in SYSTEM):  # also '._<name>', left by macOS
                if kind == "folder":
                    out.unseen.append(Path(entry.path))
                else:
                    out.hidden += 1
                continue
            if kind == "folder":
                check_name(name, Path(here))
                if deep:
                    (links if entry.is_symlink() else todo).append((f"{above}{name}/", entry.path))
                else:
                    out.subfolders.append(Path(entry.path))
                continue
            ending = _ending(name)
            if kind == "file" and ending in ENDINGS:
                check_name(name, Path(here))
                below = f"{above}{name}"
                found.append((composed(below), below, entry.path))
                out.small += small or bool(SMALL_COPIES.fullmatch(name.rpartition(".")[0]))
            elif kind == "missing" and (ending in ENDINGS or "." not in name):  # without an ending: perhaps a folder
                check_name(name, Path(here))
                out.missing.append(Path(entry.path))
            elif name != LEGEND:
                known = ending.isascii() and ending.isalnum() and len(ending) <= 8
                out.passed_over[ending if known else ""] += 1
    found.sort()
    out.names = [below for _, below, _ in found]
    out.images = [Path(path) for _, _, path in found]
    out.subfolders.sort(key=lambda path: composed(path.name))
    for paths in (out.missing, out.unseen):
        paths.sort()
    return out


def check_some(found: Found) -> None:
    """Refuse a folder without images.

    Raises:
        InputError: there are none.
    """
    if not found.images and not found.missing:
        passed = f", found {_counts(dict(found.passed_over.most_common(SHOWN)))}" if found.passed_over else ""
        convert = "; convert them to JPEG or PNG" if found.pictures else ""
        raise InputError(
            f"{found.folder}: no images in it or below; expected files ending in {', '.join(IMAGE_SUFFIXES)}{passed}"
            f"{convert}"
        )


def check_missing(found: Sequence[Found], skip: bool = False) -> None:
    """Refuse images that are links to no file.

    Args:
        found: what is in the folders.
        skip: whether such links may be left out, up to half of the images.

    Raises:
        InputError: there are such links, or too many.
    """
    missing = [path for one in found for path in one.missing]
    count = len(missing) + sum(len(one.images) for one in found)
    if not missing or (skip and 2 * len(missing) <= count):
        return
    way_out = "more than half, which on_bad_image: skip does not leave out"
    if not skip:
        way_out = "or set on_bad_image: skip to leave them out"
    raise InputError(
        f"{missing[0].parent}: {len(missing)} of {count} files are links that lead nowhere ({few(missing)}); fetch "
        f"their content (git annex get, dvc pull), or remove the links; {way_out}"
    )


def together(folder: Path, found: Sequence[Found]) -> Found:
    """What is in several folders, as if it were in one."""
    out = Found(folder)
    for one in found:
        for name in ("images", "names", "missing", "unseen", "subfolders"):
            getattr(out, name).extend(getattr(one, name))
        out.passed_over.update(one.passed_over)
        out.hidden, out.again, out.small = out.hidden + one.hidden, out.again + one.again, out.small + one.small
    return out


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder and its subfolders, in the order of their paths.

    Raises:
        InputError: see `list_below`, `check_some` and `check_missing`.
    """
    found = list_below(folder)
    check_some(found)
    check_missing([found])
    return found.images


def same_files(some: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """Those files that are among others too, whatever links lead to them; not their copies."""
    known = set(map(_identity, others))
    return [path for path in some if _identity(path) in known]


def _identity(path: Path) -> tuple[int, int] | Path:
    try:
        about = os.stat(path)
    except OSError:  # gone since it was listed
        return path
    return about.st_dev, about.st_ino


def name_below(path: Path, folder: Path) -> str:
    """A file's path below a folder, with '/' on every system."""
    return path.relative_to(folder).as_posix()


def stem_below(path: Path, folder: Path) -> str:
    """The same without the file's extension."""
    return path.relative_to(folder).with_suffix("").as_posix()
