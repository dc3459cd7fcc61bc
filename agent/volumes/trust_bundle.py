"""clusterTrustBundle projections: the cluster's trust anchors in one PEM file.

Source: Kubernetes API, core/v1 ClusterTrustBundleProjection; KEP-3257.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.api.errors import NotFound
from agent.volumes import atomic
from agent.volumes.base import Context, Unready

if TYPE_CHECKING:
    from agent.api.meta import LabelSelector
    from agent.api.structs import ClusterTrustBundleProjection

_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_OPERATORS = {"In": "{0} in ({1})", "NotIn": "{0} notin ({1})", "Exists": "{0}", "DoesNotExist": "!{0}"}


async def collect(context: Context, part: ClusterTrustBundleProjection, mode: int) -> dict[str, atomic.File]:
    """The file of one projection; empty when nothing is there and it is optional.

    Raises:
        Unready: nothing is there, or the cluster does not serve ClusterTrustBundles.
        ApiError: the API cannot be asked.
    """
    path = atomic.check_path(part.path)
    if context.certificates is None:
        raise Unready("clusterTrustBundle needs an API server, this node stands alone")
    if part.name:
        missing = f'clustertrustbundle "{part.name}" not found'
    else:
        missing = f"no clustertrustbundle of signer {part.signer_name!r} has the labels of the labelSelector"
    try:
        texts = await context.certificates.trust_bundles(
            part.name, signer=part.signer_name, labels=selector_text(part.label_selector)
        )
    except NotFound as exc:
        if not part.name:
            raise Unready("this cluster does not serve ClusterTrustBundles") from exc
        texts = ()
    if not texts and not part.optional:
        raise Unready(missing)
    return {path: atomic.File(anchors(texts).encode(), mode)}


def anchors(texts: Iterable[str]) -> str:
    """The certificates of several PEM texts, each once and in order, without comments and headers."""
    found: dict[str, None] = {}
    for text in texts:
        found.update(dict.fromkeys("".join(block.split()) for block in _BLOCK.findall(text)))
    lines = []
    for body in found:
        lines.append("-----BEGIN CERTIFICATE-----")
        lines += [body[start : start + 64] for start in range(0, len(body), 64)]
        lines.append("-----END CERTIFICATE-----")
    return "".join(f"{line}\n" for line in lines)


def selector_text(selector: LabelSelector | None) -> str | None:
    """A label selector as a query's text: "" for everything, None for nothing (no selector at all).

    Raises:
        Unready: an operator that is not known.
    """
    if selector is None:
        return None
    words = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    for requirement in selector.match_expressions:
        if requirement.operator not in _OPERATORS:
            raise Unready(f"labelSelector: operator {requirement.operator!r} is not known")
        words.append(_OPERATORS[requirement.operator].format(requirement.key, ",".join(requirement.values)))
    return ",".join(words)
