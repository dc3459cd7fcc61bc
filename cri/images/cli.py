"""`nodelet-cri image …`: the image store from a terminal.

    ls, pull, rm, prune     ask the running daemon over CRI; progress comes from its verbose Status
    import, export          work on the store's files beside it; the daemon notices by itself

What registries and images say is shown with control characters escaped.
"""

import argparse
import asyncio
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cri.client import QUICK_SECONDS, SOCKET, Parser, ask, shown
from cri.images import reference
from cri.images.errors import ImageError
from host.errors import HostError, InputError

_ROOT = Path("/var/lib/nodelet/cri")
_PULL_SECONDS = 3600.0
_REDRAW_SECONDS = 0.5
_BAR = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it worked, 1 when it did not, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    verb: Callable[[argparse.Namespace], None] = arguments.run
    try:
        verb(arguments)
    except (ImageError, InputError, HostError) as exc:
        print(f"nodelet-cri image: {shown(str(exc))}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"nodelet-cri image: {shown(str(exc.filename))}: {exc.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> Parser:
    parser = Parser(prog="nodelet-cri image", description="look after container images")
    _add_places(parser, endpoint=SOCKET, root=_ROOT)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        _add_places(added, endpoint=argparse.SUPPRESS, root=argparse.SUPPRESS)  # before the verb or after it
        added.set_defaults(run=run)
        return added

    listing = verb("ls", "list images", _ls)
    listing.add_argument("--pulls", action="store_true", help="the pulls under way instead")
    verb("pull", "pull an image", _pull).add_argument("image", help="name[:tag][@digest]")
    verb("rm", "remove images", _rm).add_argument("image", nargs="+", help="name or ID")
    verb("prune", "remove images that no container uses", _prune)
    load = verb("import", "bring in a docker or OCI archive", _import)
    load.add_argument("file", type=Path, help="the archive; - for standard input")
    load.add_argument("--name", default="", help="name for an image that has none in the archive")
    save = verb("export", "write an image as an archive", _export)
    save.add_argument("image", help="name or ID")
    save.add_argument("file", type=Path, help="must not exist yet")
    return parser


def _add_places(parser: argparse.ArgumentParser, *, endpoint: str, root: Path | str) -> None:
    parser.add_argument("--endpoint", default=endpoint, help=f"CRI socket ({SOCKET})")
    parser.add_argument("--root", type=Path, default=root, help=f"the daemon's --root ({_ROOT})")


def _ls(arguments: argparse.Namespace) -> None:
    def pulls(_: Any, runtime: Any, pb: Any) -> None:
        print(f"{'LAYERS':10}{'DONE':>6}{'SIZE':>12}{'SECONDS':>9}  NAME")
        for pull in _pulls(runtime, pb):
            layers, size = f"{pull['layersDone']}/{pull['layers']}", f"{pull['bytes'] / 1e6:.1f} MB"
            share = f"{_percent(pull)} %"
            print(f"{layers:10}{share:>6}{size:>12}{pull['seconds']:>9}  {shown(pull['image'])}")

    def rows(images: Any, _: Any, pb: Any) -> None:
        found = images.ListImages(pb.ListImagesRequest(), timeout=QUICK_SECONDS).images
        print(f"{'IMAGE ID':14}{'SIZE':>10}  NAME")
        for image in found:
            names = [*image.repo_tags] or [*image.repo_digests] or ["<none>"]
            for name in names:
                size = f"{image.size / 1e6:.1f} MB"
                print(f"{image.id.removeprefix('sha256:')[:12]:14}{size:>10}  {shown(name)}")

    ask(arguments.endpoint, pulls if arguments.pulls else rows)


def _pulls(runtime: Any, pb: Any) -> list[dict[str, Any]]:
    """The daemon's pulls under way."""
    info = runtime.Status(pb.StatusRequest(verbose=True), timeout=QUICK_SECONDS).info
    pulls: list[dict[str, Any]] = json.loads(info.get("imagePulls", "[]"))
    return pulls


def _percent(pull: dict[str, Any]) -> int:
    return 100 * int(pull["bytesDone"]) // int(pull["bytes"]) if pull["bytes"] else 0


def _pull(arguments: argparse.Namespace) -> None:
    def pull(images: Any, runtime: Any, pb: Any) -> None:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=arguments.image))
        if not sys.stderr.isatty():
            print(images.PullImage(request, timeout=_PULL_SECONDS).image_ref)
            return
        name, answer = str(reference.parse(arguments.image)), images.PullImage.future(request, _PULL_SECONDS)
        ended = threading.Event()
        answer.add_done_callback(lambda _: ended.set())
        while not ended.wait(_REDRAW_SECONDS):
            for item in _pulls(runtime, pb):
                if item["image"] == name:
                    print(f"\r\x1b[K{_bar(item)}", end="", file=sys.stderr, flush=True)
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(answer.result().image_ref)

    ask(arguments.endpoint, pull)


def _bar(pull: dict[str, Any]) -> str:
    """`[=====     ]  50 %  2/5 layers  12.3/24.6 MB`."""
    share = _percent(pull)
    drawn = "=" * (share * _BAR // 100)
    return (
        f"[{drawn:{_BAR}}] {share:3} %  {pull['layersDone']}/{pull['layers']} layers  "
        f"{pull['bytesDone'] / 1e6:.1f}/{pull['bytes'] / 1e6:.1f} MB"
    )


def _rm(arguments: argparse.Namespace) -> None:
    def remove(images: Any, _: Any, pb: Any) -> None:
        for name in arguments.image:
            spec = pb.ImageSpec(image=name)
            if not images.ImageStatus(pb.ImageStatusRequest(image=spec), timeout=QUICK_SECONDS).image.id:
                raise InputError(f"no image {name}")
            images.RemoveImage(pb.RemoveImageRequest(image=spec), timeout=QUICK_SECONDS)

    ask(arguments.endpoint, remove)


def _prune(arguments: argparse.Namespace) -> None:
    def prune(images: Any, runtime: Any, pb: Any) -> None:
        containers = runtime.ListContainers(pb.ListContainersRequest(), timeout=QUICK_SECONDS).containers
        used = {word for item in containers for word in (item.image_ref, item.image_id, item.image.image)}
        for image in images.ListImages(pb.ListImagesRequest(), timeout=QUICK_SECONDS).images:
            if image.pinned or used & {image.id, *image.repo_tags, *image.repo_digests}:
                continue
            spec = pb.ImageSpec(image=image.id)
            images.RemoveImage(pb.RemoveImageRequest(image=spec), timeout=QUICK_SECONDS)
            print(f"removed {shown(' '.join([*image.repo_tags]) or image.id)}")

    ask(arguments.endpoint, prune)


def _import(arguments: argparse.Namespace) -> None:
    async def work() -> None:
        from cri.images.archive import import_archive

        # The file first: a name that is wrong must not make the store's folders.
        with sys.stdin.buffer if str(arguments.file) == "-" else arguments.file.open("rb") as file:
            async with _opened(arguments.root) as store:
                for image in await import_archive(store, file, name=arguments.name):
                    print(image.id, shown(" ".join(image.repo_tags)))

    asyncio.run(work())


def _export(arguments: argparse.Namespace) -> None:
    async def work() -> None:
        from cri.images.archive import export_archive

        if not (arguments.root / "images").is_dir():
            raise InputError(f"no image store below {arguments.root}: set --root to the daemon's")
        async with _opened(arguments.root) as store:
            image = store.get(arguments.image)
            if image is None:
                raise InputError(f"no image {arguments.image}")
            export_archive(store, image, arguments.file)

    asyncio.run(work())


class _opened:
    """The store's files, opened beside the daemon."""

    def __init__(self, root: Path) -> None:
        from cri.images.store import ImageStore

        self._store = ImageStore(root / "images")

    async def __aenter__(self) -> Any:
        await self._store.open(shared=True)
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()
