"""A stage of two neighbours, two optimisers and vectors for data is a file of its own and a line in the registry."""

import importlib.util
import json
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import small_clip, small_decoder, small_prior

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.diffusion.sampling import Sampling
from t2i.nn.older import renamed
from t2i.run import train
from t2i.stages.decoder.model import Decoder
from t2i.stages.registry import STAGES, load_stage, save_stage, stage, stage_of
from t2i.stages.stage import How, Inputs

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "13_add_a_stage.py"


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The example as a module, registered; its neighbours and 64 vectors in this folder."""
    spec = importlib.util.spec_from_file_location("one_step_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "one_step_example", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(STAGES, "one_step", "one_step_example")
    monkeypatch.chdir(tmp_path)
    save_stage("clip", "clip", small_clip())
    save_stage("prior", "prior", small_prior())
    module.write_vectors(tmp_path / "vectors.tar", small_clip(), 64)
    Path("run.yaml").write_text(
        "stage: one_step\nneeds: {clip: clip, teacher: prior}\nmodel: {dim: 16, width: 32}\n"
        "data: {source: vectors.tar, num_workers: 0}\noptim: {lr: 1e-2, warmup: 0}\nsave_dtype: float32\n"
        "train: {steps: 4, batch_size: 16, out: out, save_every: 2, val_every: 4, log_every: 1, device: cpu}\n"
    )
    return module


def curve(out: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row and "judge/loss" in row]


def test_it_trains_resumes_saves_loads_and_draws(one_step: ModuleType) -> None:
    whole = train("run.yaml", [])
    assert {"loss", "cosine", "judge/loss", "judge/grad_norm"} <= whole.metrics.keys()
    train("run.yaml", ["train.out=parts", "train.steps=2"])
    train("run.yaml", ["train.out=parts", "train.steps=4"])
    for a, b in zip(curve("out")[2:], curve("parts")[2:], strict=True):  # both optimisers go on where they were
        assert (a["loss"], a["judge/loss"]) == (b["loss"], b["judge/loss"])
    model, again = load_stage("out", expect="one_step"), load_stage("parts")
    assert all(torch.equal(x, y) for x, y in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert stage_of(model) is one_step.STAGE is stage("one_step")
    checkpoint = {path.stem for path in Path("out/checkpoints/step-000004").iterdir()}
    assert {"phase-judge", "optimizer-judge"} <= checkpoint

    def drawn(*seeds: int) -> torch.Tensor:
        inputs = Inputs(
            len(seeds),
            ["a red cube"] * len(seeds),
            encode=lambda *texts: [small_clip().encode_text(captions) for captions in texts],
        )
        return one_step.STAGE.draw(model, inputs, How(Sampling(), Streams(seeds, "prior")))

    z_i = drawn(1, 2)
    assert z_i.shape == (2, 16)
    torch.testing.assert_close(drawn(2)[0], z_i[1])
    assert (z_i[0] - z_i[1]).abs().max() > 1e-4
    inputs = Inputs(2, ["a red cube"] * 2, ["", ""], z_i=z_i)
    x = stage("decoder").draw(small_decoder(), inputs, How(Sampling(2, guidance=2.0), Streams([1, 2])))  # type: ignore[misc]
    assert x.shape == (2, 3, 32, 32)


def test_phases_move_their_own_parameters(one_step: ModuleType) -> None:
    """The network and its judge, each at its own rate, and neither by the loss of the other."""
    task = one_step.OneStepTask(
        one_step.OneStep(one_step.OneStepConfig(dim=16, width=32)), clip=small_clip(), teacher=small_prior()
    )
    main, judge = task.phases()
    assert (main.lr, judge.lr) == (1.0, 2.0)
    batch = {"caption": ["a red cube"], "z": torch.nn.functional.normalize(torch.randn(1, 16), dim=1), "seed": [1]}
    judge.loss(batch)["loss"].mean().backward()
    assert all(p.grad is None for p in main.module.parameters())
    assert all(p.grad is not None for p in judge.module.parameters())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["needs={clip: clip, teecher: prior}"], UsageError, "did you mean 'teacher'"),
        (["needs={clip: prior, teacher: prior}"], UsageError, "clip=prior holds stage prior, which is no Encoder"),
        (["needs={clip: clip, teacher: nowhere}"], DataError, "nowhere"),
        (["data.source=shapes"], UsageError, r"the task needs \['z'\], the data has"),
        (["model.dims=3"], UsageError, "did you mean 'model.dim'"),
        (["task.adversarial=much"], UsageError, "task.adversarial"),
    ],
)
def test_mistakes_are_one_line(one_step: ModuleType, changes: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        train("run.yaml", changes)
    assert "\n" not in str(caught.value)


def test_phases_have_names_of_their_own(one_step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = one_step.OneStepTask.phases
    monkeypatch.setattr(one_step.OneStepTask, "phases", lambda task: [*phases(task), phases(task)[1]])
    with pytest.raises(UsageError, match=r"different names .*\['main', 'judge', 'judge'\]"):
        train("run.yaml", [])


def test_a_phase_is_resumed_whatever_its_parts_are_called(
    one_step: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what earlier versions wrote has earlier names."""
    init = one_step.OneStepTask.__init__

    def with_text(task: Any, *given: Any, **neighbours: Any) -> None:
        init(task, *given, **neighbours)
        task.judge = torch.nn.Sequential(OrderedDict(text=task.judge))

    monkeypatch.setattr(one_step.OneStepTask, "__init__", with_text)
    monkeypatch.setattr(one_step, "STAGE", replace(one_step.STAGE, renamed=renamed))
    train("run.yaml", ["train.steps=2"])
    assert train("run.yaml", ["train.steps=4"]).step == 4


def test_a_compiled_or_derived_network_is_of_its_stage() -> None:
    class Mine(Decoder):
        pass

    assert stage_of(Mine(small_decoder().config)).name == "decoder"
    assert stage_of(torch.compile(small_decoder())).name == "decoder"  # type: ignore[arg-type]
