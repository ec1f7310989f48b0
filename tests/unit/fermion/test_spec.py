"""What options and files say of an instance, as the API's message."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli.fields import OPTION_OF
from fermion.cli.spec import Wish, build
from fermion.errors import InvalidArgument
from services.instances.spec import CHANGEABLE

FULL = Wish(
    image="python:3.12",
    gpu="0.5",
    gpu_type="A100-80GB",
    cpu="4",
    memory="16GiB",
    storage="50GiB",
    shm="1GiB",
    port=("web:8000",),
    env=("MODE=fast",),
    command=("python", "-m", "http.server"),
    arg=("--quiet",),
    restart="on-failure",
    restarts_max=3,
    max_duration="8h",
    max_cost="2.50",
    label=("team=vision",),
    display_name="Lab",
    description="A lab",
)


def test_every_option_lands_in_its_field() -> None:
    asked, _ = build(FULL)
    spec = asked.spec
    assert spec.resources == api.Resources(
        gpu_type="A100-80GB",
        gpu_milli=500,
        cpu_milli=4000,
        memory_bytes=16 * 2**30,
        storage_bytes=50 * 2**30,
        shm_bytes=2**30,
    )
    assert (spec.image, list(spec.command), list(spec.args)) == (
        "python:3.12",
        ["python", "-m", "http.server"],
        ["--quiet"],
    )
    assert spec.restart_policy.mode == workload.RestartPolicy.MODE_ON_FAILURE
    assert spec.restart_policy.restarts_max == 3
    assert spec.max_duration.seconds == 8 * 3600
    assert spec.max_cost == workload.Money(nanos=2_500_000_000)
    assert (dict(asked.labels), asked.display_name) == ({"team": "vision"}, "Lab")


def test_an_update_names_what_options_said_and_nothing_else() -> None:
    assert build(Wish(cpu="2", label=("a=b",)))[1] == ["labels", "spec.resources.cpu_milli"]
    assert build(Wish())[1] == []


def test_every_path_that_an_option_names_may_be_changed() -> None:
    assert set(build(FULL)[1]) <= set(CHANGEABLE)


def test_every_field_that_may_be_changed_has_an_option() -> None:
    said = {path.removeprefix("instance.") for path in OPTION_OF}
    below = {"spec", "spec.resources", "spec.restart_policy"}
    assert set(CHANGEABLE) - below <= said


def test_no_gpu_is_said_and_not_left_out() -> None:
    asked, paths = build(Wish(gpu="0"))
    assert asked.spec.resources.HasField("gpu_milli")
    assert paths == ["spec.resources.gpu_milli"]


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(
        "name: projects/a/instances/lab\n"
        "spec:\n"
        "  image: old\n"
        "  ports: [{name: web, number: 80}, {name: db, number: 5432}]\n"
        "  env: [{name: MODE, value: slow}]\n"
    )
    asked, _ = build(Wish(file=file, image="new", port=("web:8000",), env=("MODE=fast",)))
    assert asked.spec.image == "new"
    assert {port.name: port.number for port in asked.spec.ports} == {"web": 8000, "db": 5432}
    assert [(entry.name, entry.value) for entry in asked.spec.env] == [("MODE", "fast")]


def test_what_get_prints_can_be_given_back(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(
        "name: projects/a/instances/lab\nuid: inst_1\netag: '3'\ngeneration: '3'\n"
        "status: {state: STATE_RUNNING}\nowner: user_1\nspec: {kind: KIND_NOTEBOOK}\n"
    )
    asked, _ = build(Wish(file=file))
    assert asked == api.Instance(
        name="projects/a/instances/lab", spec=api.Spec(kind=api.KIND_NOTEBOOK)
    )


def test_a_secret_is_refused_from_options_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("spec: {env: [{name: HF_TOKEN, value: x}]}")
    for wish in (Wish(env=("HF_TOKEN=x",)), Wish(file=file)):
        with pytest.raises(InvalidArgument) as caught:
            build(wish)
        assert "--plain-env" in caught.value.next_step
        assert "x" not in caught.value.message.split("HF_TOKEN")[0]


def test_a_secret_is_taken_where_it_is_said_to_be_none() -> None:
    asked, _ = build(Wish(env=("HF_TOKEN=x",), plain_env=True))
    assert asked.spec.env[0].value == "x"
