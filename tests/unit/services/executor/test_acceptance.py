"""What the local cluster refuses, and how it names and describes a replica."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from chassis import ids
from fermion.api.workload import v1 as api
from services.executor import folder, gpus, limits
from services.executor.acceptance import refusal
from services.executor.ground import Ground
from services.executor.recipe import Recipe
from services.executor.shim import RANK_PORT

UID = "01kb0000000000000000000000"
WORKLOAD = ids.workload("inst_lab", "", 1)
TAIL = WORKLOAD.partition("_")[2]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """Two simulated GPUs, no control groups, one recipe."""
    requirements = tmp_path / "lab.txt"
    requirements.write_text("lab==1\n")
    recipes = {"lab": Recipe("lab", "a lab", requirements, ("lab", "serve"), "LAB_TOKEN")}
    return Ground(tmp_path, UID, "here", limits.without_groups(UID), gpus.simulated(2), recipes)


def work(group: api.Group, **rest: object) -> api.Workload:
    return api.Workload(uid=WORKLOAD, kind=api.KIND_INSTANCE, groups=[group], **rest)  # type: ignore[misc]


def host(**rest: object) -> api.Group:
    usual = {"image": api.Image(repository="host"), "command": ["true"]}
    return api.Group(replicas=1, **{**usual, **rest})  # type: ignore[misc]


def mount(path: str) -> api.Mount:
    return api.Mount(path=path, volume=api.Mount.Volume(volume_uid=ids.derived("vol", path)))


CHECK = api.Probe(http_path="/", port="web")


@pytest.mark.parametrize(("wanted", "field"), [
    (work(host(command=[])), "groups[0].command"),
    (work(host(image=api.Image(repository="host", digest="sha256:" + "0" * 64))), "groups[0].image"),
    (work(host(image=api.Image(repository="lab", version_uid="img_1"))), "groups[0].image"),
    (work(host(image=api.Image(repository="ubuntu"))), "groups[0].image"),
    (work(host(resources=api.Resources(gpu_milli=3000))), "groups[0].resources.gpu_milli"),
    (work(host(resources=api.Resources(gpu_milli=1000, gpu_type="H100"))),
     "groups[0].resources.gpu_type"),
    (work(host(resources=api.Resources(shm_bytes=2**43))), "groups[0].resources.shm_bytes"),
    (work(host(mounts=[api.Mount(path="/a")])), "groups[0].mounts[0]"),
    (work(host(mounts=[mount("/")])), "groups[0].mounts[0].path"),
    (work(host(mounts=[mount("/a/../b")])), "groups[0].mounts[0].path"),
    (work(host(mounts=[mount("/a"), mount("/a/b")])), "groups[0].mounts[1].path"),
    (work(host(mounts=[mount("/a"), mount("/a/")])), "groups[0].mounts[1].path"),
    (work(host(probes=api.Probes(liveness=CHECK))), "groups[0].probes.liveness.port"),
    (work(host(), requires=api.Requirements(architecture="z80")), "requires.architecture"),
    (work(host(), requires=api.Requirements(driver="1")), "requires.driver"),
    (work(host(), requires=api.Requirements(features=["rdma"])), "requires.features"),
    (work(host(), egress=["example"]), "egress"),
    (work(host(), ends=api.Ends(rule=api.Ends.RULE_ROLE, role="head")), "ends.role"),
    (work(host(), success=api.Success(rule=api.Success.RULE_ROLE, role="head")), "success.role"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_named(ground: Ground, wanted: api.Workload, field: str) -> None:
    refused = refusal(ground, wanted)
    assert refused is not None
    assert refused[0] == field
    assert refused[1].message


def test_two_groups_of_one_role_cannot_be_told_apart(ground: Ground) -> None:
    wanted = work(host(role="a"))
    wanted.groups.append(host(role="a"))
    refused = refusal(ground, wanted)
    assert refused is not None
    assert refused[0] == "groups[0].role"


def test_the_end_and_the_success_of_a_role_that_is_there_are_taken(ground: Ground) -> None:
    ends = api.Ends(rule=api.Ends.RULE_ROLE, role="head")
    success = api.Success(rule=api.Success.RULE_ROLE, role="head")
    assert refusal(ground, work(host(role="head"), ends=ends, success=success)) is None


@pytest.mark.parametrize("group", [
    host(),
    host(resources=api.Resources(gpu_milli=2000, gpu_type="SIM-GPU")),
    host(mounts=[mount("/a"), mount("/b/c"), mount("/ab")]),
    host(ports=[api.Port(name="web", number=80)], probes=api.Probes(readiness=CHECK)),
    host(probes=api.Probes(readiness=api.Probe(command=["ask"]))),
    host(image=api.Image(repository="lab"), command=[]),
])  # fmt: skip
def test_what_can_be_honoured_is_taken(ground: Ground, group: api.Group) -> None:
    assert refusal(ground, work(group)) is None


def test_the_digest_of_what_really_runs_is_taken(ground: Ground) -> None:
    for name in ("host", "lab"):
        found = ground.image(name)
        assert found is not None
        assert refusal(ground, work(host(image=found))) is None


@pytest.mark.parametrize(("role", "rank", "name"), [
    ("", 0, f"instance-{TAIL}"),
    ("", 2, f"instance-{TAIL}-2"),
    ("worker", 0, f"instance-{TAIL}-worker-0"),
])  # fmt: skip
def test_a_replica_has_one_name_for_ever(role: str, rank: int, name: str) -> None:
    assert folder.name_of(work(host()), role, rank) == name


def test_no_uid_leads_out_of_the_clusters_folder(ground: Ground) -> None:
    wanted = work(host())
    wanted.uid = "wkl_/../../etc"
    with pytest.raises(ValueError, match="TypeID"):
        folder.name_of(wanted, "", 0)
    with pytest.raises(ValueError, match="TypeID"):
        ground.tombstone(wanted.uid)


def said(
    ground: Ground, wanted: api.Workload, replicas: Mapping[str, int] | None = None
) -> list[tuple[str, str]]:
    group = wanted.groups[0]
    volumes = {one.volume.volume_uid: Path("/v") / one.path.strip("/") for one in group.mounts}
    return list(
        folder.words(ground, wanted, group, 0, "object", replicas or {group.role: 1}, volumes)
    )


def test_the_uid_follows_from_the_object(ground: Ground) -> None:
    assert ("uid", ids.derived("rep", UID, "object", "main")) in said(ground, work(host()))


def test_a_replica_works_in_its_first_volume(ground: Ground) -> None:
    found = said(ground, work(host(mounts=[mount("/first"), mount("/second")])))
    assert ("cwd", "/v/first") in found
    assert ("default", "HOME=/v/first") in found


def test_a_replica_without_a_volume_works_in_scratch(ground: Ground) -> None:
    (cwd,) = [value for name, value in said(ground, work(host())) if name == "cwd"]
    assert cwd.endswith("/scratch")


def test_a_recipe_brings_its_programs_its_command_and_its_builder(ground: Ground) -> None:
    wanted = work(host(image=api.Image(repository="lab"), command=[], args=["--fast"]))
    found = said(ground, wanted)
    assert [value for name, value in found if name == "command"] == ["lab", "serve", "--fast"]
    (image,) = [value for name, value in found if name == "image"]
    (path,) = [value for name, value in found if value.startswith("PATH=")]
    assert path.startswith(f"PATH={image}/venv/bin:")
    assert ("token_variable", "LAB_TOKEN") in found
    assert (Path(image) / "requirements.txt").read_text() == "lab==1\n"


def test_a_restart_waits_at_least_a_second_where_nothing_is_said(ground: Ground) -> None:
    mode = api.RestartPolicy.MODE_ALWAYS
    found = said(ground, work(host(restart=api.RestartPolicy(mode=mode))))
    assert ("restart", "always") in found
    assert ("backoff_ms", "1000") in found
    rule = api.RestartPolicy(mode=mode, backoff=Duration(seconds=10), restarts_max=4)
    found = said(ground, work(host(restart=rule)))
    assert ("backoff_ms", "10000") in found
    assert ("restarts_max", "4") in found


def test_ranks_are_told_of_each_other(ground: Ground) -> None:
    wanted = work(host(role="a"), rendezvous=api.RENDEZVOUS_RANKS)
    found = said(ground, wanted, {"a": 2})
    assert ("port", RANK_PORT) in found
    assert [value for name, value in found if name == "peer"] == [
        f"a/instance-{TAIL}-a-0",
        f"a/instance-{TAIL}-a-1",
    ]


def test_a_folder_that_a_power_cut_left_half_is_made_anew(ground: Ground) -> None:
    wanted = work(host())
    path = ground.replicas / folder.name_of(wanted, "", 0)
    for file, kept in (("spec", 40), ("spec", 0), ("workload", 40), ("workload", 0)):
        ground.replicas.mkdir(exist_ok=True)
        folder.make(ground, wanted, wanted.groups[0], 0, {"": 1}, {})
        made = folder.read(ground, path)
        assert made is not None
        folder.make(ground, wanted, wanted.groups[0], 0, {"": 1}, {})
        again = folder.read(ground, path)
        assert again is not None
        assert again.uid == made.uid
        (path / file).write_bytes((path / file).read_bytes()[:kept])
        assert folder.read(ground, path) is None
        folder.make(ground, wanted, wanted.groups[0], 0, {"": 1}, {})
        anew = folder.read(ground, path)
        assert anew is not None
        assert anew.uid != made.uid


def test_labels_are_brought_up_to_date(ground: Ground) -> None:
    ground.replicas.mkdir()
    wanted = work(host())
    path = ground.replicas / folder.name_of(wanted, "", 0)
    for labels in ({}, {"team": "blue"}, {"team": "red", "cost": "7"}):
        wanted.labels.clear()
        wanted.labels.update(labels)
        folder.make(ground, wanted, wanted.groups[0], 0, {"": 1}, {})
        lines = (path / "labels").read_text().splitlines()
        assert dict(line.split("=") for line in lines) == labels


def test_an_image_is_another_when_anything_of_it_is(tmp_path: Path) -> None:
    requirements = tmp_path / "lab.txt"
    requirements.write_text("lab==1\n")
    first = Recipe("lab", "a lab", requirements)
    digests = {first.digest, Recipe("lab", "a lab", requirements, files={"a": "b"}).digest}
    requirements.write_text("lab==2\n")
    digests.add(first.digest)
    assert len(digests) == 3
