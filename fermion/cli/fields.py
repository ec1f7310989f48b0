"""Which option says which field, so that a refusal of a field names the option."""

from __future__ import annotations

from collections.abc import Mapping

# By the field's path in a request: the option that says it.
OPTION_OF: Mapping[str, str] = {
    "parent": "--project",
    "instance_id": "NAME",
    "instance.display_name": "--display-name",
    "instance.description": "--description",
    "instance.labels": "--label",
    "instance.spec.kind": "--kind",
    "instance.spec.template": "--template",
    "instance.spec.image": "--image",
    "instance.spec.resources.gpu_type": "--gpu-type",
    "instance.spec.resources.gpu_milli": "--gpu",
    "instance.spec.resources.cpu_milli": "--cpu",
    "instance.spec.resources.memory_bytes": "--memory",
    "instance.spec.resources.storage_bytes": "--storage",
    "instance.spec.resources.shm_bytes": "--shm",
    "instance.spec.ports": "--port",
    "instance.spec.env": "--env",
    "instance.spec.command": "--",
    "instance.spec.args": "--arg",
    "instance.spec.restart_policy.mode": "--restart",
    "instance.spec.restart_policy.restarts_max": "--restarts-max",
    "instance.spec.max_duration": "--max-duration",
    "owner": "NAME",
    "start_time": "--from",
    "end_time": "--to",
    "group_by": "--by",
    "label": "--by",
    "line": "--line",
    "cut": "--cut",
    "workload.max_duration": "--max-duration",
    "workload.max_cost": "--max-cost",
    "storage_bytes": "--storage",
    "price_book.effective_time": "--effective",
    "instance.spec.max_cost": "--max-cost",
    "instance.spec.max_cost.nanos": "--max-cost",
    "instance.spec.max_cost.currency": "--max-cost",
    "quota.limits.gpu_milli": "--gpu",
    "quota.limits.cpu_milli": "--cpu",
    "quota.limits.memory_bytes": "--memory",
    "quota.limits.storage_bytes": "--storage",
    "quota.limits.workloads": "--workloads",
}
