"""Turns each fact into the named writes of its rows, and rows back into what callers see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, assert_never, cast

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.postgres import Record
from fermion.api.projects import v1 as api
from services.projects import aggregate, enrolment
from services.projects.aggregate import Fact, Project, Token, User
from services.projects.enrolment import Cluster
from services.projects.quota import Quota

# A user or a project that goes takes many rows along, so writes to members keep the order of all.
MEMBERS: Final = "members"


def project(record: Recorded) -> Sequence[Write]:
    """Choose the writes of one fact."""
    fact, at = cast(Fact, record.message), record.record_time
    match fact:
        case api.UserRegistered():
            return _write("add_account", fact.uid, fact.user, api.PLATFORM_ROLE_USER, at)
        case api.UserProfileChanged():
            return _write("count_profile", fact.uid, fact.generation)
        case api.PlatformRoleSet():
            return _write("set_platform_role", fact.uid, fact.platform_role)
        case api.UserDeleted():
            return [
                Write("remove_account", fact.uid, (fact.uid,)),
                Write("remove_memberships", MEMBERS, (fact.uid,)),
                _unbounded(f"users/{fact.uid}"),
            ]
        case api.ProjectCreated():
            return _write("add_project", fact.uid, fact.project, *_spec(fact.spec), at)
        case api.ProjectChanged():
            return _write("change_project", fact.uid, *_spec(fact.spec), fact.generation, at)
        case api.ProjectArchived():
            return _write("archive_project", fact.uid, api.Project.STATE_ARCHIVED, at)
        case api.ProjectVacatedBy():
            return _write("vacate_project", fact.uid, fact.service, at)
        case api.ProjectDeleted():
            return [
                Write("remove_project", fact.uid, (fact.uid,)),
                Write("remove_members", MEMBERS, (fact.uid,)),
                _unbounded(f"projects/{fact.uid}"),
            ]
        case api.MemberSet():
            return _member(
                "set_member", fact.project_uid, fact.user_uid, fact.project, fact.role, at
            )
        case api.MemberRemoved():
            return _member("remove_member", fact.project_uid, fact.user_uid)
        case api.TokenIssued():
            return _write(
                "add_token",
                fact.uid,
                fact.user_uid,
                fact.description,
                fact.issue_time.ToDatetime(tzinfo=at.tzinfo),
                fact.expire_time.ToDatetime(tzinfo=at.tzinfo),
            )
        case api.TokenRevoked():
            return _write("revoke_token", fact.uid)
        case api.SigningKeyAdded():
            return _write("add_key", fact.kid, fact.public_key, at)
        case api.SigningKeyRemoved():
            return _write("remove_key", fact.kid)
        case api.QuotaSet():
            # Deterministic, because rows that were folded anew are compared byte by byte.
            limits = fact.limits.SerializeToString(deterministic=True)
            uid = fact.scope.partition("/")[2]
            return _write("set_quota", fact.scope, uid, fact.version, limits)
        case api.QuotaCleared():
            return _write("clear_quota", fact.scope, fact.version)
        case api.ClusterEnrolled():
            return _write("enrol_cluster", fact.cluster, _time(fact.from_time))
        case api.ClusterRetired():
            return _write("retire_cluster", fact.cluster, _time(fact.through_time))
        case _:
            assert_never(fact)


def resource(row: Record) -> api.Project:
    """Show a row of `project` as callers see it."""
    return aggregate.view(
        Project(
            uid=row["uid"],
            project=row["name"],
            display_name=row["display_name"],
            description=row["description"],
            labels=json.loads(row["labels"]),
            state=row["state"],
            vacated_by=frozenset(row["vacated_by"]),
            generation=row["generation"],
            create_time=row["create_time"],
            update_time=row["update_time"],
        )
    )


def user(row: Record) -> api.User:
    """Show a row of `account`, with its profile beside it, as callers see it."""
    known = User(
        uid=row["uid"],
        user=row["name"],
        platform_role=row["platform_role"],
        generation=row["generation"],
        create_time=row["create_time"],
    )
    return aggregate.view_user(known, row["display_name"] or "", row["email"] or "")


def member(row: Record) -> api.Member:
    """Show a row of `member`, with its user's name beside it, as callers see it."""
    shown = api.Member(
        name=f"projects/{row['project']}/members/{row['user_name']}",
        user=f"users/{row['user_name']}",
        user_uid=row["user_uid"],
        role=row["role"],
    )
    shown.update_time.FromDatetime(row["update_time"])
    return shown


def token(row: Record, user_name: str) -> api.Token:
    """Show a row of `token` as callers see it."""
    known = Token(
        uid=row["uid"],
        user_uid=row["user_uid"],
        description=row["description"],
        issue_time=row["issue_time"],
        expire_time=row["expire_time"],
        revoked=row["revoked"],
    )
    return aggregate.view_token(known, user_name)


def key(row: Record) -> api.SigningKey:
    """Show a row of `signing_key` as callers see it."""
    shown = api.SigningKey(kid=row["kid"], public_key=row["public_key"])
    shown.create_time.FromDatetime(row["create_time"])
    return shown


def quota(row: Record) -> Quota:
    """What a row of `quota` says of its scope."""
    limits = None if row["limits"] is None else api.Limits.FromString(row["limits"])
    return Quota(row["version"], limits)


def cluster(row: Record) -> api.Cluster:
    """Show a row of `cluster` as callers see it."""
    return enrolment.view(Cluster(row["uid"], row["enrol_time"], row["retire_time"]))


def _unbounded(scope: str) -> Write:
    """Take the quota of a scope away with the project or user whose it was."""
    return Write("remove_quota", scope, (scope,))


def _write(statement: str, key: str, *arguments: object) -> list[Write]:
    return [Write(statement, key, (key, *arguments))]


def _member(statement: str, project_uid: str, user_uid: str, *arguments: object) -> list[Write]:
    return [Write(statement, MEMBERS, (project_uid, user_uid, *arguments))]


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _spec(spec: api.Project) -> tuple[str, str, str]:
    labels: Mapping[str, str] = dict(spec.labels)
    return spec.display_name, spec.description, json.dumps(labels, sort_keys=True)
