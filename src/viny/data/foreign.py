"""Files of other kinds that come under the names of pictures."""

from __future__ import annotations

START = 64  # bytes of a file that say what it is
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
PAGES = (b"<!doctype html", b"<html", b"<?xml")


def foreign(start: bytes) -> str:
    """What a file is that is no picture that can be read, and what to do; empty if its beginning does not tell.

    Args:
        start: its first bytes, `START` of them or more.
    """
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file itself; run 'git lfs pull'"
    if start[4:8] == b"ftyp" and start[8:12] in HEIF:
        return "HEIC or AVIF, whatever its name ends in; convert it to JPEG or PNG"
    if start.lstrip().lower().startswith(PAGES):
        return "a web page or XML instead of a picture; download it again"
    if start.startswith(b"%PDF"):
        return "a PDF; convert it to PNG"
    return ""
