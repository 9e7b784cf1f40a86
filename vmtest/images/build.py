"""Building an image: its sources fetched, its kernel taken out, its initramfs put together."""

from __future__ import annotations

import logging
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from vmtest.errors import ImageError, UsageError
from vmtest.images import catalog, initramfs, store
from vmtest.images.archive import is_archive, opened
from vmtest.images.cpio import Tree
from vmtest.images.fetch import Fetched, WrongHash, fetch
from vmtest.images.modules import Module, ModuleTree
from vmtest.model.arch import arch as arch_row
from vmtest.model.image import Image, Source
from vmtest.progress import Progress

__all__ = ["build"]

log = logging.getLogger("vmtest")

_KERNEL_PATHS = ("boot/vmlinuz-*", "boot/vmlinux-*")


def build(image: Image, work: Path, *, progress: Progress, update: bool) -> None:
    """Fetch all that the image is made of, and put it together in the directory ``work``, with a manifest.

    Where a source cannot be had, the image's ``instead`` is built, and that is logged as a warning.
    Raises ImageError and UsageError as ``prepare`` does, and OSError where the disk fails.
    """
    try:
        _build(image, work, progress=progress, update=update)
    except ImageError as error:
        if image.instead is None or isinstance(error, WrongHash):
            raise
        log.warning(
            "vmtest: %s is built from its other sources ([instead] in image.toml), because: %s\n"
            "vmtest: `vmtest image build --update %s` tries the first ones again",
            *(image.name, error.message, image.name),
        )
        build(image.instead, work, progress=progress, update=update)


def _build(image: Image, work: Path, *, progress: Progress, update: bool) -> None:
    if (image.modules or image.later_modules) and not image.has_initramfs:
        raise UsageError(
            f"the image {image.name} lists modules, but vmtest makes no initramfs for it",
            hint="take `modules` out, or give it a kernel and no initrd",
        )
    files: dict[str, Path] = {}
    origins: list[dict[str, str]] = []
    updated: set[tuple[str, str]] = set()

    def get(source: Source) -> Fetched:
        # The lists of one suite and architecture are fetched anew once a build, not once a package.
        lists = (source.suite, source.debian_arch)
        fetched = fetch(source, arch=image.arch, progress=progress, update=update and lists not in updated)
        updated.add(lists)
        origins.append(fetched.origin)
        return fetched

    modules: list[Module] = []
    later: list[Module] = []
    if image.kernel:
        files["kernel"], modules, later = _kernel(image, get(image.kernel), work, progress)
    if image.initrd:
        files["initrd"] = _single(image.initrd, get(image.initrd), work / "initrd", work)
    elif image.kernel:
        tree = initramfs.empty()
        for source in image.files:
            _put(tree, source, get(source), work)
        progress.step(f"putting the initramfs of {image.name} together")
        parts = initramfs.Parts(
            name=image.name,
            init=Path(image.init).read_bytes(),
            agent=catalog.agent_binary(image.arch).read_bytes() if image.agent else None,
            modules=modules,
            later_modules=later,
        )
        files["initrd"] = work / "initrd"
        files["initrd"].write_bytes(initramfs.assemble(tree, parts))
    if image.disk:
        # A disk may be many gigabytes: a local one is used in its place.
        fetched = get(image.disk)
        files["disk"] = fetched.path if image.disk.file else _single(image.disk, fetched, work / "disk", work)
    for path in files.values():
        if path.is_relative_to(work):
            path.chmod(0o444)
    records = {role: store.record(path, work) for role, path in files.items()}
    store.write_manifest(work, image.name, records, origins)


def _kernel(image: Image, fetched: Fetched, work: Path, progress: Progress) -> tuple[Path, list[Module], list[Module]]:
    """The kernel's file, and the modules from the same package: those for the agent, and those for later."""
    assert image.kernel
    target = work / "kernel"
    if not is_archive(fetched.path):
        if image.modules or image.later_modules:
            raise UsageError(
                f"the image {image.name} lists modules, but its kernel {fetched.path.name} is a bare file",
                hint="take `modules` out (what is built into the kernel needs none), or use a package as its source",
            )
        shutil.copyfile(fetched.path, target)
    else:
        progress.step(f"unpacking {fetched.path.name}")
        with opened(fetched.path, scratch=work) as archive:
            wanted = image.kernel.paths or _KERNEL_PATHS
            found = [path for path in archive.members if any(fnmatchcase(path, glob.lstrip("/")) for glob in wanted)]
            if not found:
                raise ImageError(f"{archive.name} has no kernel at {' or '.join(wanted)}")
            target.write_bytes(archive.read(min(found)))
            tree = ModuleTree((path for path in archive.members if "lib/modules/" in path), archive.read)
            both = tree.closure((*image.modules, *image.later_modules))
            first = {module.path for module in tree.closure(image.modules)}
    with target.open("rb") as stream:
        head = stream.read(4096)
    if not any(head.startswith(magic, offset) for offset, magic in arch_row(image.arch).kernel_magics):
        raise ImageError(
            f"{fetched.path} is no kernel that {image.arch} can boot",
            hint="check `arch` and `kernel` in image.toml",
        )
    if not is_archive(fetched.path):
        return target, [], []
    return target, [m for m in both if m.path in first], [m for m in both if m.path not in first]


def _single(source: Source, fetched: Fetched, target: Path, work: Path) -> Path:
    """The one file that a source gives: itself, or what ``paths`` picks out of an archive."""
    if source.paths and is_archive(fetched.path):
        with opened(fetched.path, scratch=work) as archive:
            target.write_bytes(archive.read(archive.matching(source.paths[0])[0]))
    else:
        shutil.copyfile(fetched.path, target)
    return target


def _put(tree: Tree, source: Source, fetched: Fetched, work: Path) -> None:
    """Put what a source of ``files`` gives into the tree."""
    if is_archive(fetched.path):
        with opened(fetched.path, scratch=work) as archive:
            initramfs.put_archive(tree, archive, source.paths or ("*",))
    elif len(source.paths) != 1:
        raise UsageError(
            f"{source.file or source.url}: where should it go in the guest?",
            hint='say paths = ["/usr/bin/…"], one path',
        )
    else:
        tree.file(source.paths[0], fetched.path.read_bytes(), mode=fetched.path.stat().st_mode & 0o777)
