"""The typed client: verbs, pages, and which error type an answer becomes."""

import pytest
from apikit import ScriptedTransport, item, listing, refusal

from agent.api import errors
from agent.api.client import ApiClient, PatchKind
from agent.api.resources import NODES, PODS
from agent.api.structs import Node, ObjectMeta, Pod, TokenRequestSpec


def client(answer, streams=None) -> ApiClient:
    return ApiClient(ScriptedTransport(answer, streams))


async def test_a_list_is_read_page_by_page():
    def answer(method, path, query, body):
        if "continue" not in query:
            return listing(item("a", "1"), version="9", continue_="more")
        assert query["continue"] == "more"
        return listing(item("b", "2"), version="9")

    found = await client(answer).list(PODS, field_selector="spec.nodeName=n1")
    assert [pod.metadata.name for pod in found.items] == ["a", "b"]
    assert found.resource_version == "9"


async def test_an_expired_page_starts_the_list_again_without_pages():
    def answer(method, path, query, body):
        if "continue" in query:
            return refusal(410, "Expired")
        return listing(item("a", "1"), continue_="more") if "limit" in query else listing(item("b", "2"))

    found = await client(answer).list(PODS)
    assert [pod.metadata.name for pod in found.items] == ["b"]


async def test_a_list_without_items_is_empty():
    found = await client(lambda *_: {"metadata": {"resourceVersion": "1"}, "items": None}).list(PODS)
    assert found.items == ()


async def test_create_says_what_it_creates():
    api = client(lambda method, path, query, body: body)
    await api.create(NODES, Node(metadata=ObjectMeta(name="n1")))
    method, path, _, body, _ = api.transport.requests[0]
    assert (method, path) == ("POST", "/api/v1/nodes")
    assert (body["apiVersion"], body["kind"]) == ("v1", "Node")


async def test_patch_kinds_and_subresources():
    api = client(lambda *_: item("p", "2"))
    await api.patch(PODS, "p", {"status": {}}, namespace="d", subresource="status", kind=PatchKind.MERGE)
    method, path, _, _, content_type = api.transport.requests[0]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/d/pods/p/status")
    assert content_type == "application/merge-patch+json"


async def test_delete_is_bound_to_the_uid():
    api = client(lambda *_: {})
    await api.delete(PODS, "p", namespace="d", uid="u", grace_period_seconds=0)
    body = api.transport.requests[0][3]
    assert body["preconditions"] == {"uid": "u"}
    assert body["gracePeriodSeconds"] == 0


async def test_tokens():
    api = client(lambda *_: {"status": {"token": "t", "expirationTimestamp": "2026-01-01T00:00:00Z"}})
    answer = await api.create_token("sa", namespace="d", spec=TokenRequestSpec(audiences=("a",)))
    assert answer.status.token == "t"
    assert api.transport.requests[0][1] == "/api/v1/namespaces/d/serviceaccounts/sa/token"


async def test_an_answer_of_another_form_is_permanent():
    with pytest.raises(errors.Permanent, match="expected form"):
        await client(lambda *_: {"metadata": 5}).get(PODS, "p", namespace="d")


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", errors.BadRequest),
        (401, "Unauthorized", errors.Unauthorized),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Gone),
        (422, "Invalid", errors.BadRequest),
        (429, "TooManyRequests", errors.Temporary),
        (500, "InternalError", errors.Temporary),
        (504, "Timeout", errors.Temporary),
    ],
)
def test_error_types(code, reason, kind):
    assert type(refusal(code, reason)) is kind


def test_objects_are_immutable():
    with pytest.raises(AttributeError):
        Pod().metadata = ObjectMeta()
