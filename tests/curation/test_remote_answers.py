"""What remote planner, writer, parser, drafter and judge ask, and what they accept as an answer."""

import base64
import json

import jsonschema
import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Step, decode_image, plan_text
from process_gen.curation import remote_judge
from process_gen.curation.prompt_graph import RuleParser
from process_gen.curation.protocols import (
    Change,
    CheckRequest,
    DrawRequest,
    Edge,
    Failed,
    Node,
    PlannedStep,
    PlanRequest,
    SceneGraph,
    Verdict,
)
from process_gen.curation.remote_client import RemoteClient
from process_gen.curation.remote_drafter import RemoteDrafter
from process_gen.curation.remote_judge import RemoteJudge, RemoteParser, scene_graph, verdict
from process_gen.curation.remote_options import RemoteOptions
from process_gen.curation.remote_planner import RemotePlanner, RemoteWriter
from process_gen.curation.remote_questions import Unfit
from process_gen.curation.wording import describe
from tests.curation.fake_server import FakeServer, picture_of

PLAN = plan_text("Add a dog.", "A dog on a lawn.")
DOG = Node("dog", 2, "red", ("fluffy",))
GRAPH = SceneGraph((Node("lawn", background=True), DOG), (Edge(1, "standing on", 0),))


@pytest.fixture
def server():
    with FakeServer() as running:
        yield running


@pytest.fixture
def ask(server, tmp_path):
    """A client of the fake server; keyword arguments change its options."""
    clients = []

    def build(**changes):
        settings = {"cache": str(tmp_path / "answers"), "backoff": 0.01, "attempts": 2, **changes}
        options = RemoteOptions(
            base_url=server.url,
            api_key_env="",
            chat_model="seer",
            image_model="painter",
            **settings,
        )
        clients.append(RemoteClient(options))
        return clients[-1]

    yield build
    for client in clients:
        client.close()


def shown(request):
    """(texts, pictures) of a chat request."""
    content = request["body"]["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content[1:]] if isinstance(content, list) else []
    data = [url.removeprefix("data:image/png;base64,") for url in urls]
    system = request["body"]["messages"][0]["content"]
    return system, request["text"], [decode_image(base64.b64decode(text)) for text in data]


def test_judge_sees_prompt_plans_and_both_pictures(server, ask):
    before, after = picture_of("before"), picture_of("after")
    earlier = (Step(plan_text("Paint a lawn.", "A lawn."), before, "fine"),)
    hidden = {"include": [{"class": "secretly a cat", "count": 1}]}
    request = CheckRequest("a dog", hidden, earlier, PLAN, after, seed=2**40 + 7)
    (answer,) = RemoteJudge(ask()).check([request])
    assert answer == Verdict("a lawn a dog is still to come.")
    system, user, pictures = shown(server.requests[0])
    assert np.array_equal(pictures[0], before) and np.array_equal(pictures[1], after)
    for text in ("a dog", "Paint a lawn.", "Add a dog.", "A dog on a lawn.", "second, newest"):
        assert text in user
    assert "secretly" not in system + user, "the requirement is the judge's own measure"
    body = server.requests[0]["body"]
    assert body["model"] == "seer" and body["seed"] == (2**40 + 7) % 2**31
    assert body["response_format"]["json_schema"]["strict"] is True


def test_judge_without_a_picture_is_asked_about_the_plan_alone(server, ask):
    requests = [CheckRequest(prompt, {}, (), PLAN, None) for prompt in ("a dog", "a conflict")]
    answers = RemoteJudge(ask()).check(requests)
    assert answers[0] == Verdict("a dog is still to come.")
    assert answers[1] == Verdict(
        "a conflict is still to come.",
        "conflict",
        "Make it red.",
        plan_text("Add a red dog.", "A dog."),
        "color",
    )
    system, _, pictures = shown(server.requests[0])
    assert pictures == [] and "misalignment" not in system
    (impossible,) = RemoteJudge(ask()).check([CheckRequest("a misalignment", {}, (), PLAN, None)])
    assert isinstance(impossible, Failed) and impossible.reason == "contradiction"
    picture = picture_of("after")
    (wrong,) = RemoteJudge(ask()).check([CheckRequest("a misalignment", {}, (), PLAN, picture)])
    assert (wrong.fault, wrong.command, wrong.corrected_plan) == (
        "misalignment",
        "Make it red.",
        None,
    )
    with pytest.raises(DataError, match="plan to be judged"):
        RemoteJudge(ask()).check([CheckRequest("a dog", {}, (), "Add a dog.", None)])


ANSWER = {
    "seen": "a lawn",
    "analysis": "It is green.",
    "fault": "conflict",
    "kind": "count",
    "command": "Remove one.",
    "corrected_instruction": "Add a dog.",
    "corrected_description": "A dog.",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"command": " "}, "contradiction"),
        ({"corrected_description": ""}, "contradiction"),
        ({"seen": ""}, "contradiction"),
        ({"analysis": ""}, "contradiction"),
        ({"analysis": "All <refine>well"}, "markup"),
        ({"command": "Add <|im_end|>."}, "markup"),
        ({"corrected_instruction": "</ins>"}, "markup"),
    ],
)
def test_verdicts_that_contradict_themselves(change, reason):
    assert verdict(ANSWER, drawn=True).fault == "conflict"
    with pytest.raises(Unfit) as caught:
        verdict(ANSWER | change, drawn=True)
    assert caught.value.reason == reason


def test_drafter_draws_anew_or_edits(server, ask):
    before = picture_of("before")
    drafter = RemoteDrafter(ask(send_image_seed=True, image_options={"quality": "low"}))
    requests = [
        DrawRequest("Paint a lawn.", "A lawn.", None, 7),
        DrawRequest("Add a dog.", "A dog on a lawn.", before, 7),
    ]
    drawn = drafter.draw(requests)
    new, edit = sorted(server.requests, key=lambda request: request["path"], reverse=True)
    assert new["path"] == "/v1/images/generations" and new["text"] == "A lawn."
    assert (new["body"]["seed"], new["body"]["quality"], new["body"]["n"]) == (7, "low", 1)
    assert edit["path"] == "/v1/images/edits" and edit["text"].startswith("Add a dog.")
    assert edit["body"]["seed"] == "7" and edit["body"]["response_format"] == "b64_json"
    (file,) = edit["files"].values()
    assert np.array_equal(decode_image(file), before)
    assert all(map(np.array_equal, drawn, (picture_of(new["text"]), picture_of(edit["text"]))))
    # The picture that is edited is a part of the question.
    drafter.draw([DrawRequest("Add a dog.", "A dog on a lawn.", picture_of("other"), 7)])
    assert len(server.requests) == 3
    drafter.draw(requests)
    assert len(server.requests) == 3
    (small,) = RemoteDrafter(ask(longest_side=12)).draw(requests[:1])
    assert small.shape == (12, 8, 3)


def test_planner_follows_the_graph(server, ask):
    planner = RemotePlanner(ask(), RuleParser(), detours=1.0)
    (plan,) = planner.plan([PlanRequest("two red dogs on a lawn", {}, 3)])
    assert plan[0] == PlannedStep("Paint a lawn.", "A lawn.")
    system, user, _ = shown(server.requests[0])
    assert "0. 2 x red dog\n1. 1 x lawn\n0 is on 1" in user and "detour" in system
    without = RemotePlanner(ask(), detours=0.0).plan([PlanRequest("two red dogs", {}, 3)])
    system, user, _ = shown(server.requests[1])
    assert len(without[0]) == 2 and "Objects" not in user and "detour" not in system
    (refused,) = RemotePlanner(ask(), max_steps=1).plan([PlanRequest("a dog", {}, 0)])
    assert isinstance(refused, Failed) and refused.reason == "contradiction"


def test_writer_shows_both_scenes(server, ask):
    change = Change("two red dogs", "add", GRAPH.subgraph([0]), GRAPH)
    assert RemoteWriter(ask()).write([change]) == [("Add it.", "1 is standing on 0")]
    _, user, _ = shown(server.requests[0])
    assert user.count("lawn (background)") == 2 and user.count("2 x red fluffy dog") == 1


def test_parser_is_asked_only_where_rules_fail(server, ask):
    prompts = ["a red dog", "What if a dog could fly?", "two cats"]
    graphs = RemoteParser(ask(), RuleParser()).parse(prompts)
    assert [graph.nodes[0].name for graph in graphs] == ["dog", "fly?", "cat"]
    assert len(server.requests) == 1
    assert len(RemoteParser(ask()).parse(prompts)) == 3 and len(server.requests) == 3


def test_graphs_that_contradict_themselves():
    node = {"name": "dog", "count": 1, "color": None, "attributes": ["big"], "background": False}
    edge = {"subject": 0, "relation": "near", "target": 1}
    good = {"nodes": [node, node], "edges": [edge]}
    assert len(scene_graph(good).edges) == 1
    for wrong in (
        {"nodes": []},
        {"nodes": [node | {"count": 0}, node]},
        {"nodes": [node | {"name": ""}, node]},
        {"edges": [edge | {"target": 2}]},
        {"edges": [edge | {"target": 0}]},
        {"edges": [edge | {"subject": -1}]},
    ):
        with pytest.raises(Unfit, match="contradiction"):
            scene_graph(good | wrong)


def test_whole_numbers_with_a_point_are_whole_numbers():
    node = {"name": "dog", "count": 2.0, "color": None, "attributes": [], "background": False}
    edge = {"subject": 0.0, "relation": "near", "target": 1.0}
    answer = json.loads(json.dumps({"nodes": [node, node], "edges": [edge]}))
    jsonschema.validate(answer, remote_judge._GRAPH)  # which refuses a half
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"nodes": [node | {"count": 1.5}], "edges": []}, remote_judge._GRAPH)
    assert describe(scene_graph(answer)) == "two dogs, two dogs; the dogs near the dogs"


@pytest.mark.parametrize("mode", ["json_object", "free"])
def test_servers_that_know_no_schema(server, ask, mode):
    """They are told in words; the answer is checked all the same."""
    client = ask(answers=mode, send_chat_seed=False, chat_options={"temperature": 0.2})
    request = CheckRequest("a dog", {}, (), PLAN, picture_of("x"))
    assert RemoteJudge(client).check([request])[0] == Verdict("a lawn a dog is still to come.")
    body = server.requests[0]["body"]
    expected = {"type": "json_object"} if mode == "json_object" else None
    assert body.get("response_format") == expected
    assert body["temperature"] == 0.2 and "seed" not in body


def test_a_template_of_ones_own_is_another_question(server, ask, tmp_path):
    RemoteDrafter(ask()).draw([DrawRequest("", "A lawn.", None, 0)])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "draw.j2").write_text("{% block user %}{{ description }}{% endblock %}")
    client = ask(templates=str(tmp_path / "own"))
    RemoteDrafter(client).draw([DrawRequest("", "A lawn.", None, 0)])
    assert [request["text"] for request in server.requests] == ["A lawn."] * 2
    assert client.description()["templates"] == {"draw": client.template("draw").fingerprint}
