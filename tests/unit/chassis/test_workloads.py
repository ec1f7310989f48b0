"""A workload asks for features, and is refused by the name of the field where a cluster has them not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.duration_pb2 import Duration

from chassis import workloads
from fermion.api.workload import v1 as api

RESERVED_ONLY = api.PURCHASE_RESERVED_ONLY


def of(**asked: object) -> api.Workload:
    return api.Workload(groups=[api.Group(**asked)])  # type: ignore[arg-type]


def mounting(**source: object) -> api.Workload:
    return of(mounts=[api.Mount(path="/data", **source)])  # type: ignore[arg-type]


ASKED: Sequence[tuple[str, str, api.Workload]] = (
    ("purposes", "purpose", api.Workload(purpose="tensorboard")),
    ("attach", "attach", api.Workload(attach=api.Attach(workload_uid="wkl_1"))),
    ("egress", "egress", api.Workload(egress=["pypi.org"])),
    ("build-isolation", "isolation", api.Workload(isolation=api.ISOLATION_BUILD)),
    ("ranks", "rendezvous", api.Workload(rendezvous=api.RENDEZVOUS_RANKS)),
    ("routes", "drain", api.Workload(drain=Duration(seconds=60))),
    ("placement", "placement.flavour", api.Workload(placement=api.Placement(flavour="fast"))),
    ("placement", "placement.same_rack", api.Workload(placement=api.Placement(same_rack=True))),
    (
        "placement",
        "placement.beside_workload_uid",
        api.Workload(placement=api.Placement(beside_workload_uid="wkl_1")),
    ),
    ("companions", "groups[0].companions", of(companions=[api.Companion(name="helper")])),
    ("identity", "groups[0].identity", of(identity=api.Identity(role="viewer"))),
    ("secrets", "groups[0].secret_refs", of(secret_refs=[api.SecretRef(env="A", secret="b")])),
    ("probes", "groups[0].probes", of(probes=api.Probes(liveness=api.Probe(port="web")))),
    ("preemption", "groups[0].preemptible", of(preemptible=True)),
    ("reservations", "groups[0].purchase", of(purchase=RESERVED_ONLY)),
    (
        "routes",
        "groups[0].ports[1].public",
        of(ports=[api.Port(name="web"), api.Port(name="open", public=True)]),
    ),
    (
        "shared-gpus",
        "groups[0].resources.gpu_milli",
        of(resources=api.Resources(gpu_milli=1500)),
    ),
    ("artifacts", "groups[0].mounts[0].artifact", mounting(artifact=api.Mount.Artifact(uri="a"))),
    ("outputs", "groups[0].mounts[0].output", mounting(output=api.Mount.Output(name="model"))),
    (
        "checkpoints",
        "groups[0].mounts[0].checkpoint",
        mounting(checkpoint=api.Mount.Checkpoint(pattern="*.pt")),
    ),
    ("volumes", "groups[0].mounts[0].volume", mounting(volume=api.Mount.Volume(volume_uid="v"))),
)


@pytest.mark.parametrize(("feature", "field", "asked"), ASKED, ids=[field for _, field, _ in ASKED])
def test_what_a_cluster_has_not_is_refused_by_name(
    feature: str, field: str, asked: api.Workload
) -> None:
    others = [known for known in workloads.FEATURES if known != feature]
    can = api.Capabilities(cluster_kind="local", any_image=True, features=others)
    refused = workloads.unhonoured(asked, can)
    assert refused is not None
    assert refused[0] == field
    assert refused[1].code == "FIELD_NOT_HONOURED"
    assert dict(refused[1].arguments) == {
        "field": field,
        "feature": feature,
        "cluster_kind": "local",
    }
    can.features.append(feature)
    assert workloads.unhonoured(asked, can) is None


def test_every_feature_is_asked_for_by_some_field() -> None:
    assert {feature for feature, _, _ in ASKED} == set(workloads.FEATURES)


def test_what_asks_for_nothing_special_runs_on_a_cluster_without_features() -> None:
    plain = of(
        replicas=1,
        purchase=api.PURCHASE_ANY,
        priority=3,
        ports=[api.Port(name="web", number=80)],
        resources=api.Resources(gpu_milli=2000, cpu_milli=500),
    )
    plain.isolation = api.ISOLATION_RESTRICTED
    plain.rendezvous = api.RENDEZVOUS_NONE
    plain.drain.SetInParent()
    plain.placement.avoid.add(node="broken")
    assert workloads.unhonoured(plain, api.Capabilities(any_image=True)) is None
