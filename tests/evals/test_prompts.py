"""Prompts taken apart, benchmarks' files, judges, and `t2i eval prompts` from end to end."""

import json
import math
import os
import signal
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from chat_server import chatting
from file_server import listening

from t2i.core.errors import DataError, UsageError
from t2i.data import shapes
from t2i.data.shapes.scene import Box
from t2i.evals.atoms import Atom, arithmetic, by_atoms, geometric, table
from t2i.evals.compose import Prompt, Wanted, atoms_of
from t2i.evals.judges import Detector, Found, Questions, Reader, open_judge, probability, questions_of, stands
from t2i.evals.judges import atoms_of as judged
from t2i.evals.prompt_files import Case, read_cases, understood
from t2i.evals.prompts import prompts
from t2i.io.chat import Endpoint
from t2i.io.images import to_pil
from t2i.io.provenance import read_recipe
from t2i.pipeline.output import Output
from t2i.stages.registry import stage

BOX = Box(0.4, 0.4, 0.6, 0.6)


def thing(kind: str, colour: str | None = None, box: Box = BOX, score: float = 0.95) -> Found:
    return Found(kind, score, box, colour)


def test_means_over_atoms() -> None:
    atoms = [Atom("a", 1.0), Atom("b", 0.25)]
    assert (arithmetic(atoms), geometric(atoms)) == (0.625, 0.5)
    assert geometric([*atoms, Atom("c", 0.0)]) == 0
    found = by_atoms([atoms, [Atom("a", 1.0)], [Atom("a", 0.0)], []])
    assert list(found) == ["all", "1", "2"]
    assert found["all"]["pictures"] == 3
    assert found["all"]["arithmetic"][0] == pytest.approx(100 * (0.625 + 1) / 3)
    assert found["2"]["geometric"][0] == pytest.approx(50)
    assert len(table(found).splitlines()) == 4
    assert by_atoms([]) == {}


def test_what_compose_asks_for_is_taken_apart() -> None:
    prompt = Prompt("position", "a red cube left of a sphere", (Wanted("cube", "red"), Wanted("sphere")), "left of")

    def seen(shape: str, colour: str, x: float) -> Any:
        return SimpleNamespace(shape=shape, colour=colour, box=Box(x, 0.4, x + 0.1, 0.5), raised=False)

    right = atoms_of(prompt, [seen("cube", "red", 0.1), seen("sphere", "blue", 0.7)])
    assert [atom.value for atom in right] == [1, 1, 1, 1]
    wrong = atoms_of(prompt, [seen("cube", "blue", 0.7), seen("sphere", "blue", 0.1)])
    assert [atom.value for atom in wrong] == [1, 0, 1, 0]
    three = Prompt("counting", "three cubes", (Wanted("cube", None, 3),))
    assert [a.value for a in atoms_of(three, [seen("cube", "red", 0.1)] * 2)] == [1, 0]
    assert [a.value for a in atoms_of(three, [seen("cube", "red", 0.1)] * 3)] == [1, 1]


GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}],
     "prompt": "two cats"},
    {"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "cow", "count": 1, "color": "red",
     "position": ["left of", 0]}], "prompt": "a red cow left of a dog"},
]  # fmt: skip


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    return path


def test_files_of_benchmarks_are_read(tmp_path: Path) -> None:
    cases = read_cases(lines(tmp_path / "geneval.jsonl", GENEVAL))
    assert [case.tag for case in cases] == ["single_object", "counting", "position"]
    assert cases[1].exclude[0].count == 3
    assert (cases[2].include[1].relation, cases[2].include[1].other, cases[2].include[1].colour) == (
        "left of",
        0,
        "red",
    )
    assert understood(cases) == "3 prompts of 3 kinds; 3 say what must be there, 0 have questions"
    two = [
        {"prompt": "four red bears", "vqa_list": [["How many bears?", "4"], ["Are they red?", "yes"]], "atom_count": 2},
        {"prompt": "a bear", "questions": ["Is there a bear?", {"question": "Is it alone?", "answer": "yes"}]},
    ]
    cases = read_cases(lines(tmp_path / "geneval2.jsonl", two))
    assert cases[0].questions == (("How many bears?", "4"), ("Are they red?", "yes"))
    assert cases[1].questions == (("Is there a bear?", "yes"), ("Is it alone?", "yes"))
    (tmp_path / "drawbench.csv").write_text('Prompts,Category\n"A red car, parked.",Colors\nA blue one.,Colors\n,\n')
    cases = read_cases(tmp_path / "drawbench.csv")
    assert [(case.text, case.tag) for case in cases] == [("A red car, parked.", "Colors"), ("A blue one.", "Colors")]
    (tmp_path / "mine.txt").write_text("a red cube\n\na blue ball\n")
    assert [case.text for case in read_cases(tmp_path / "mine.txt")] == ["a red cube", "a blue ball"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": ', "line 2: no JSON"),
        ("a.jsonl", '{"text": "x"}', "line 1: expected an object with a prompt"),
        ("a.jsonl", '{"prompt": "x", "include": [{"count": 1}]}', "line 1, include: expected class"),
        ("a.jsonl", '{"prompt": "x", "include": [{"class": "a", "position": ["over", 0]}]}', "unknown position 'over'"),
        (
            "a.jsonl",
            '{"prompt": "x", "include": [{"class": "a", "position": ["above", 0]}]}',
            "a position from thing 0",
        ),
        ("a.jsonl", '{"prompt": "x", "include": [{"class": "a", "count": 0}]}', "count 0"),
        ("a.jsonl", '{"prompt": "x", "include": [{"class": "a", "count": 1.5}]}', "count 1.5"),
        ("a.jsonl", '{"prompt": "x", "include": [{"class": "a", "material": "wood"}]}', "unknown 'material'"),
        ("a.jsonl", '{"prompt": "x", "include": {"class": "a"}}', "line 1, include: expected a list"),
        ("a.jsonl", '{"prompt": "x", "include": [{"class": "a", "position": "above"}]}', "expected a relation"),
        ("a.jsonl", '{"prompt": "x", "vqa_list": {"a": 1}}', "expected a list of questions"),
        ("a.jsonl", '{"prompt": "x", "vqa_list": ["a?"], "skills": ["b", "c"]}', "a skill for each of 1 questions"),
        ("a.csv", "Prompts,Category\nx,y\n,y\n", "line 3: no prompt"),
        ("a.csv", 'Prompts,Category\nx,y\n"z,y\n', "line 3: unexpected end"),
        ("a.csv", "Prompts,Category\na car, red,y\n", "line 2: more columns"),
        ("a.jsonl", '{"prompt": "x", "vqa_list": [5]}', "expected questions"),
        ("a.csv", "Text,Kind\nx,y\n", "no column Prompts"),
        ("a.txt", "\n\n", "holds no prompts"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_cases(tmp_path / name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_genevals_rules() -> None:
    left, right = Box(0.0, 0.4, 0.2, 0.6), Box(0.8, 0.4, 1.0, 0.6)
    assert stands("left of", left, right)
    assert stands("right of", right, left)
    assert not stands("above", left, right)
    assert not stands("left of", Box(0.0, 0, 0.5, 0.5), Box(0.05, 0, 0.55, 0.5))  # less than a tenth of both widths
    assert not stands("left of", Box(0.0, 0, 0.4, 0.4), Box(0.15, 0, 0.55, 0.4))  # 0.07 of 0.15: less than half the way
    assert stands("left of", Box(0.0, 0, 0.4, 0.4), Box(0.17, 0, 0.57, 0.4))  # 0.09 of 0.17
    assert not stands("left of", left, left)
    corner = Box(0.8, 0.8, 1.0, 1.0)
    assert stands("left of", Box(0, 0, 0.2, 0.2), corner)
    assert stands("above", Box(0, 0, 0.2, 0.2), corner)  # both may hold
    case = Case("x", "position", read_case(GENEVAL[2]).include)
    dog, cow = thing("dog", box=right), thing("cow", "red", left)
    assert [a.value for a in judged(case, [dog, cow])] == [1, 1, 1, 1]
    assert [a.value for a in judged(case, [dog, thing("cow", "blue", left)])] == [1, 1, 0, 1]
    assert [a.value for a in judged(case, [dog])] == [1, 0, 0, 0]
    assert [a.value for a in judged(case, [dog, cow._replace(score=0.2)])] == [1, 0, 0, 0]
    counting = read_case(GENEVAL[1])
    assert [a.value for a in judged(counting, [thing("cat")] * 2)] == [1, 1]
    assert [a.value for a in judged(counting, [thing("cat")] * 3)] == [1, 0]
    with pytest.raises(DataError, match="says no colours"):
        judged(case, [dog, thing("cow", None, left)])


def read_case(row: dict[str, Any]) -> Case:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read_cases(lines(Path(folder) / "a.jsonl", [row]))[0]


def test_questions_are_made_of_things() -> None:
    assert questions_of(read_case(GENEVAL[1])) == [("How many cats are in the picture?", "2")]
    asked = questions_of(read_case(GENEVAL[2]))
    assert asked[-2:] == [("Is the cow red?", "yes"), ("Is the cow left of the dog?", "yes")]


def test_how_sure_an_answer_is() -> None:
    def tops(**chances: float) -> dict[str, Any]:
        rows = [{"token": f" {word}", "logprob": math.log(p)} for word, p in chances.items()]
        return {"message": {"content": "Yes."}, "logprobs": {"content": [{"top_logprobs": rows}]}}

    assert probability(tops(Yes=0.6, no=0.2, maybe=0.2), "yes") == pytest.approx(0.75)
    assert probability(tops(Yes=0.6, No=0.2), "no") == pytest.approx(0.25)
    assert probability({"message": {"content": "Yes, it is."}}, "yes") == 1
    assert probability({"message": {"content": "no"}, "logprobs": None}, "yes") == 0
    for text in ("4", "four", "Four.", "There are four bears.", "**4**"):
        assert probability({"message": {"content": text}}, "4") == 1
        assert probability({"message": {"content": text}}, "four") == 1
    assert probability({"message": {"content": "There are no bears"}}, "4") == 0
    assert probability(tops(four=0.6, five=0.2, many=0.2), "4") == pytest.approx(0.75)
    assert probability(tops(Yes=0.9), "no") == 0
    assert probability({**tops(There=0.9, four=0.1), "message": {"content": "There are 3"}}, "4") == 0
    assert probability({"message": {"content": "<think>no, or</think>yes"}}, "yes") == 1
    assert probability({"message": {"content": "A metal one"}}, "metal") == 1


@pytest.mark.parametrize(("text", "answer"), [("", "yes"), ("I cannot tell", "yes"), ("many", "4"), (None, "metal")])
def test_what_is_no_answer_is_not_wrong(text: str | None, answer: str) -> None:
    with pytest.raises(DataError, match="it answered"):
        probability({"message": {"content": text}}, answer)


class Drawer:
    """Renders a red cube, a blue sphere and so on, by the words of a prompt; `kill_at` a picture its process dies."""

    device = torch.device("cpu")
    parts = MappingProxyType({"prior": None, "decoder": None})
    planner = SimpleNamespace(stages={name: stage(name) for name in parts})
    subject, judged, source, weights = "prompt", "decoder", "drawer", "abc"

    def __init__(self, kill_at: int = -1) -> None:
        self.asked: list[tuple[str, int]] = []
        self.kill_at = kill_at

    def __call__(self, texts: list[str], *, seed: list[int], **call: Any) -> Output:
        self.asked += zip(texts, seed, strict=True)
        if 0 <= self.kill_at <= len(self.asked):
            os.kill(os.getpid(), signal.SIGKILL)
        import random

        scenes = [
            shapes.compose([tuple(text.split()[1:3])], None, random.Random(s))
            for text, s in zip(texts, seed, strict=True)
        ]  # type: ignore[list-item]
        recipe = {"model": "drawer", "arguments": {"prompt": texts, "seed": seed, "max_batch": 8}}
        return Output(to_pil(shapes.render(scenes, 64)), seed, texts, recipe)


CASES = [
    {"tag": "colors", "include": [{"class": "cube", "count": 1, "color": "red"}], "prompt": "a red cube"},
    {"tag": "colors", "include": [{"class": "ball", "count": 1, "color": "green"}], "prompt": "a blue sphere"},
]


def put(out: Path, drawer: Any, judge: Any, cases: list[Any] = CASES, **more: Any) -> Any:
    given = [read_case(row) for row in cases]
    return prompts(drawer, given, out, judge, **({"num": 2, "batch": 3} | more))


def test_prompts_are_drawn_judged_and_counted(tmp_path: Path) -> None:
    drawer, out = Drawer(), tmp_path / "out"
    report = put(out, drawer, Reader(), seed=5)
    assert drawer.asked == [("a red cube", 5), ("a red cube", 6), ("a blue sphere", 7), ("a blue sphere", 8)]
    assert json.loads((out / "00001" / "metadata.jsonl").read_text())["prompt"] == "a blue sphere"
    recipe = read_recipe(out / "00000" / "samples" / "0001.png")
    assert recipe["arguments"]["seed"][recipe["picture"]] == 6
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in results] == [True, True, False, False]
    assert json.loads(results[0]["metadata"]) == CASES[0]
    assert report.facts["shares"]["colors"]["correct"] == 2  # the second prompt's picture is blue, green is asked for
    assert report.facts["atoms"]["all"]["arithmetic"][0] == 75
    rows = report.facts["pictures"]
    assert [row["correct"] for row in rows] == [True, True, False, False]
    assert rows[2]["reason"] == "not: ball is green"
    again = put(out, drawer, Reader(), seed=5)
    assert len(drawer.asked) == 4
    assert again.facts == report.facts


def test_a_kill_loses_no_picture_and_no_verdict(tmp_path: Path) -> None:
    out = tmp_path / "out"
    if (child := os.fork()) == 0:
        put(out, Drawer(kill_at=4), Reader(), batch=1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    drawer = Drawer()
    report = put(out, drawer, Reader(), batch=1)
    assert drawer.asked == [("a blue sphere", 3)]
    assert len(report.facts["pictures"]) == 4
    with pytest.raises(UsageError, match="holds other pictures .num: '2', not '3'"):  # noqa: RUF043
        put(out, drawer, Reader(), num=3)


class Detects(BaseHTTPRequestHandler):
    state: Any

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = json.dumps(self.state.answer(asked)).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def detecting(answer: Callable[[Any], Any]) -> Any:
    return listening(Detects, SimpleNamespace(answer=answer))


def test_a_detector_of_the_users_judges(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(body: dict[str, Any]) -> Any:
        asked.append(body["image"][:22])
        return {"objects": [{"class": "cube", "score": 0.8, "box": [1, 2, 30, 40], "color": "red"}]}

    with detecting(answer) as url:
        report = put(tmp_path / "out", Drawer(), Detector(url))
    assert asked == ["data:image/png;base64,"] * 4
    assert [row["correct"] for row in report.facts["pictures"]] == [True, True, False, False]


def test_what_a_judge_cannot_say_is_not_counted_as_wrong(tmp_path: Path) -> None:
    broken = [True]

    def answer(body: dict[str, Any]) -> Any:
        if broken and broken.pop():
            return {"things": []}
        return {"objects": [{"class": "cube", "score": 0.8, "box": [1, 2, 30, 40], "color": "red"}]}

    with detecting(answer) as url:
        report = put(tmp_path / "out", Drawer(), Detector(url), CASES[:1])
        assert report.facts["not_judged"] == 1
        assert report.facts["shares"]["colors"]["total"] == 1
        assert "1 pictures were not judged" in report.text
        again = put(tmp_path / "out", Drawer(), Detector(url), CASES[:1])
    assert again.facts["not_judged"] == 0
    assert again.facts["shares"]["colors"]["correct"] == 2
    with detecting(lambda _: {"things": []}) as url, pytest.raises(DataError, match="5 pictures in a row"):
        put(tmp_path / "other", Drawer(), Detector(url), num=3)


def test_a_model_that_answers_questions_judges(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> str:
        return "no" if "green" in body["messages"][0]["content"][1]["text"] else "Yes"

    with chatting(reply=reply) as server:
        judge = open_judge(f"vqa={server.url}")
        report = put(tmp_path / "out", Drawer(), judge)
    assert [row["correct"] for row in report.facts["pictures"]] == [True, True, False, False]
    first = server.asked[0]
    assert first["logprobs"] is True
    assert first["messages"][0]["content"][1]["text"] == "Is there a cube in the picture? Answer with yes or no."


def test_without_a_judge_pictures_are_drawn_alone(tmp_path: Path) -> None:
    report = put(tmp_path / "out", Drawer(), None)
    assert "4 pictures in" in report.text
    assert len(list((tmp_path / "out").glob("*/samples/*.png"))) == 4
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()


def test_judges_refuse_what_they_cannot_judge() -> None:
    with pytest.raises(UsageError, match="knows no 'bench'"):
        Reader().check([read_case(GENEVAL[0])])
    for judge in (Reader(), Detector("http://localhost:1")):
        with pytest.raises(UsageError, match="do not say what must be there"):
            judge.check([Case("x")])
    Questions(Endpoint("http://localhost:1", "m")).check([Case("x")])
    assert questions_of(Case("a red cube")) == [('Does the picture show "a red cube"?', "yes")]
    with pytest.raises(UsageError, match="did you mean 'reader'"):
        open_judge("readr")
    with pytest.raises(UsageError, match="expected reader, detector=URL"):
        open_judge("detector=nowhere")
    assert open_judge("none") is None


def test_pictures_of_others_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "00000" / "samples").mkdir(parents=True)
    (out / "00000" / "samples" / "0000.png").write_bytes(b"another model's")
    with pytest.raises(UsageError, match="holds 00000, which is not of this"):
        put(out, Drawer(), None)
    assert (out / "00000" / "samples" / "0000.png").read_bytes() == b"another model's"


def test_other_demands_on_the_same_sentences_are_other_prompts(tmp_path: Path) -> None:
    put(tmp_path / "out", Drawer(), None)
    other = [{**CASES[0], "include": [{"class": "cube", "count": 2}]}, CASES[1]]
    with pytest.raises(UsageError, match=r"holds other pictures \(prompts"):
        put(tmp_path / "out", Drawer(), None, other)


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    """A server that fails at one question: what it has answered of that picture before is kept. What a kill cut off in
    the journal costs that line alone."""
    failing = [True]

    def reply(body: dict[str, Any]) -> str:
        return "Hm." if failing and "green" in body["messages"][0]["content"][1]["text"] else "Yes"

    with chatting(reply=reply) as server:
        judge = open_judge(f"vqa={server.url}")
        first = put(tmp_path / "out", Drawer(), judge)
        assert first.facts["not_judged"] == 2
        assert "asked for yes or no, it answered 'Hm.'" in first.text
        assert len(server.asked) == 8
        failing.clear()
        with open(tmp_path / "out" / "verdicts.jsonl", "a") as file:
            file.write('{"judge": "x", "pro')
        again = put(tmp_path / "out", Drawer(), judge)
        assert len(server.asked) == 10
        assert put(tmp_path / "out", Drawer(), judge).facts == again.facts
    assert again.facts["not_judged"] == 0
    assert len(server.asked) == 10


def test_a_server_without_probabilities_is_asked_without_them(tmp_path: Path) -> None:
    with chatting(reply=lambda _: "yes", statuses=[400]) as server:
        report = put(tmp_path / "out", Drawer(), open_judge(f"vqa={server.url}"))
    assert report.facts["not_judged"] == 0
    assert ["logprobs" in body for body in server.asked] == [True] + [False] * 8


def test_pictures_that_fail_keep_no_other_from_its_verdict(tmp_path: Path) -> None:
    """The first six cannot be judged: nothing more is asked after five, and the next time they come last."""
    good = {"objects": [{"class": "cube", "score": 0.8, "box": [1, 2, 30, 40], "color": "red"}]}
    count = [0]

    def answer(body: dict[str, Any]) -> Any:
        count[0] += 1
        return {} if count[0] <= 5 else good

    with detecting(answer) as url:
        with pytest.raises(DataError, match="5 pictures in a row could not be judged"):
            put(tmp_path / "out", Drawer(), Detector(url), CASES[:1], num=7)
        count[0] = 5
        report = put(tmp_path / "out", Drawer(), Detector(url), CASES[:1], num=7)
    assert report.facts["shares"]["colors"]["correct"] == 7
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert [row["number"] for row in lines if "atoms" in row] == [5, 6, 0, 1, 2, 3, 4]


def test_skills_and_numbers_of_a_file_are_kept(tmp_path: Path) -> None:
    row = {
        "prompt": "a red cube", "atom_count": 3, "skills": ["object", "attribute"],
        "vqa_list": [["Are there any cubes?", "Yes"], ["Are the cubes red?", "Yes"]],
    }  # fmt: skip
    with chatting(reply=lambda b: "no" if "red" in b["messages"][0]["content"][1]["text"] else "yes") as server:
        report = put(tmp_path / "out", Drawer(), open_judge(f"vqa={server.url}"), [row])
    assert list(report.facts["atoms"]) == ["all", "3"]
    assert {skill: score[0] for skill, score in report.facts["skills"].items()} == {"object": 100, "attribute": 0}
    assert "of 1 kinds; 0 say what must be there, 1 have questions of 2 skills" in report.text
