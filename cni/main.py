"""The executable `nodelet-cni`: environment and stdin in, one JSON object on stdout, exit status 0 or 1.

See "Section 2: Execution Protocol" of the CNI specification 1.1.0. Everything else is cni.entry; a person's
options go to cni.cli.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from cni import entry, errors
from cni.errors import CniError
from cni.handover import MAX_INPUT_BYTES


def main() -> None:
    """Run the command that the environment names, and exit; options are for people."""
    if sys.argv[1:]:
        from cni import cli  # not worth its time for those who do not ask

        sys.exit(cli.main(sys.argv[1:]))
    execute(sys.stdin.buffer.read(MAX_INPUT_BYTES + 1))


def execute(stdin: bytes, *, broken: bool = False) -> None:
    """Run the environment's command on this input, print what it gives, and exit.

    Args:
        broken: a service has had this command and is gone (cni.handover). The runtime is to try again: it
            takes back first what may have been done.
    """
    status, output = run(os.environ, stdin, broken=broken)
    if output:
        sys.stdout.write(json.dumps(output) + "\n")
    sys.stdout.flush()
    os._exit(status)  # everything is on disk and in the kernel: taking the interpreter apart is 5 ms


def run(environment: Mapping[str, str], stdin: bytes, *, broken: bool = False) -> tuple[int, dict[str, Any]]:
    """The exit status and the object to print for one execution. `broken`: see `execute`."""
    version = "1.1.0"
    try:
        command = environment.get("CNI_COMMAND", "")
        config = _read_config(stdin)
        version = str(config.get("cniVersion", version))
        if broken and command == "ADD":
            raise CniError(errors.TRY_AGAIN_LATER, "nodelet-cni --serve ended before it had answered")
        result = entry.execute(
            command,
            config=config,
            container_id=environment.get("CNI_CONTAINERID", ""),
            netns=environment.get("CNI_NETNS", ""),
            ifname=environment.get("CNI_IFNAME", ""),
            args=parse_args(environment.get("CNI_ARGS", "")),
            path=environment.get("CNI_PATH", ""),
        )
        return 0, result
    except CniError as exc:
        return 1, exc.to_dict(version)


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS, "K=V;K=V", as pairs; a part without '=' is refused (error 4)."""
    pairs = {}
    for part in filter(None, text.split(";")):
        key, equals, value = part.partition("=")
        if not equals:
            raise CniError(errors.INVALID_ENVIRONMENT, f"CNI_ARGS part {part[:40]!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs


def _read_config(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_INPUT_BYTES:
        raise CniError(errors.DECODE_FAILURE, f"configuration is larger than {MAX_INPUT_BYTES} bytes")
    try:
        config = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as exc:
        raise CniError(errors.DECODE_FAILURE, "configuration is not JSON", str(exc)) from exc
    if not isinstance(config, dict):
        raise CniError(errors.DECODE_FAILURE, "configuration is not a JSON object")
    return config


if __name__ == "__main__":
    main()
