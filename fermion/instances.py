"""Development environments: create, start, stop, watch, wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING

from fermion.api.instances import v1 as api
from fermion.api.instances.v1 import service_pb2_grpc as stubs
from fermion.errors import NotFound, Timeout, WorkloadFailed

if TYPE_CHECKING:
    from fermion.client import Line

PAGE_SIZE = 1000
# What comes behind states that may have come and gone between two looks.
_PAST = {
    api.STATE_PENDING: (api.STATE_STARTING, api.STATE_RUNNING),
    api.STATE_STARTING: (api.STATE_RUNNING,),
    api.STATE_STOPPING: (api.STATE_STOPPED,),
}


class Instances:
    """Development environments of a project; `name` is `projects/{project}/instances/{instance}`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._stub = stubs.InstanceServiceStub(line.channel)

    def create(
        self, project: str, instance_id: str, instance: api.Instance, *, validate_only: bool = False
    ) -> api.CreateInstanceResponse:
        """Create an instance and ask for its start; `validate_only` answers the plan instead."""
        request = api.CreateInstanceRequest(
            parent=f"projects/{project}",
            instance_id=instance_id,
            instance=instance,
            validate_only=validate_only,
        )
        return self._line.ask(self._stub.CreateInstance, request)

    def get(self, name: str, as_of: datetime | None = None) -> api.Instance:
        """Read one, as it is or as it was."""
        request = api.GetInstanceRequest(name=name)
        if as_of is not None:
            request.as_of_time.FromDatetime(as_of)
        return self._line.ask(self._stub.GetInstance, request).instance

    def list(self, project: str, filter: str = "", order_by: str = "") -> Iterator[api.Instance]:
        """Every instance of a project, page by page."""
        request = api.ListInstancesRequest(
            parent=f"projects/{project}", filter=filter, order_by=order_by, page_size=PAGE_SIZE
        )
        while True:
            page = self._line.ask(self._stub.ListInstances, request)
            yield from page.instances
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(
        self,
        project: str,
        instance_id: str = "",
        resume_token: str = "",
        send_initial: bool = True,
    ) -> Iterator[api.WatchInstancesResponse]:
        """
        Follow changes, also over restarts of the platform; ends only by an error or by its caller.

        Where the journal was restored meanwhile (RESUME_TOKEN_EXPIRED), begin anew.
        """
        request = api.WatchInstancesRequest(
            parent=f"projects/{project}",
            instance_id=instance_id,
            resume_token=resume_token,
            send_initial=send_initial,
        )
        return self._line.follow(self._stub.WatchInstances, request, _go_on)

    def wait(self, name: str, state: api.State.ValueType, seconds: float = 600.0) -> api.Instance:
        """
        Wait until it is in a state, or past it where that comes and goes, and answer it.

        Raises `WorkloadFailed` where it failed instead, or has stopped and nobody wants it to run,
        `Timeout` after `seconds`, and `NotFound` where it is not there, or not any more.
        """
        found = self.get(name)
        _, project, _, instance_id = name.split("/")
        request = api.WatchInstancesRequest(
            parent=f"projects/{project}", instance_id=instance_id, send_initial=True
        )
        watching = self._line.follow(self._stub.WatchInstances, request, _go_on, seconds)
        wanted = api.State.Name(state).removeprefix("STATE_")
        try:
            with closing(watching) as changes:
                for change in changes:
                    if change.change == api.WatchInstancesResponse.CHANGE_DELETED:
                        break
                    if change.change != api.WatchInstancesResponse.CHANGE_BOOKMARK:
                        found = change.instance
                    if found.status.state in (state, *_PAST.get(state, ())):
                        return found
                    if _ended(found.status):
                        reason = found.status.reason
                        ended = api.State.Name(found.status.state).removeprefix("STATE_").lower()
                        raise WorkloadFailed(
                            f"{name} {ended}: {reason.message or reason.code or 'no reason is given'}",
                            reason=reason.code,
                            arguments=dict(reason.arguments),
                            next_step=f"See what happened: fermion events list {instance_id} "
                            f"-p {project}",
                        )
        except Timeout as error:
            present = api.State.Name(found.status.state).removeprefix("STATE_")
            why = f": {found.status.reason.message}" if found.status.reason.message else "."
            raise Timeout(
                f"{name} is not {wanted} after {seconds:g} s, but {present}{why}",
                reason="WAIT_TIMEOUT",
                arguments={"state": present},
                next_step=f"Follow it: fermion instances watch {instance_id} -p {project}",
            ) from error
        raise NotFound(f"{name} was deleted while it was waited for.", reason="INSTANCE_NOT_FOUND")

    def update(
        self,
        instance: api.Instance,
        paths: Sequence[str] = (),
        etag: str = "",
        *,
        validate_only: bool = False,
    ) -> api.UpdateInstanceResponse:
        """Change what `paths` name, or all that is set; what runs follows at its next start."""
        request = api.UpdateInstanceRequest(
            instance=instance, etag=etag, validate_only=validate_only
        )
        request.update_mask.paths.extend(paths)
        return self._line.ask(self._stub.UpdateInstance, request)

    def start(self, name: str, etag: str = "") -> api.Instance:
        """Ask for a start."""
        request = api.StartInstanceRequest(name=name, etag=etag)
        return self._line.ask(self._stub.StartInstance, request).instance

    def stop(self, name: str, etag: str = "") -> api.Instance:
        """Ask for a stop; name and files are kept."""
        request = api.StopInstanceRequest(name=name, etag=etag)
        return self._line.ask(self._stub.StopInstance, request).instance

    def restart(self, name: str, etag: str = "") -> api.Instance:
        """Ask for a stop, and a start after it."""
        request = api.RestartInstanceRequest(name=name, etag=etag)
        return self._line.ask(self._stub.RestartInstance, request).instance

    def delete(self, name: str, etag: str = "") -> api.Instance:
        """Ask for its deletion, files and all; one that lives is stopped first."""
        request = api.DeleteInstanceRequest(name=name, etag=etag)
        return self._line.ask(self._stub.DeleteInstance, request).instance

    def template(self, name: str) -> api.Template:
        """Read one template, `templates/{template}`."""
        request = api.GetTemplateRequest(name=name)
        return self._line.ask(self._stub.GetTemplate, request).template

    def templates(self, show_hidden: bool = False) -> Sequence[api.Template]:
        """The pre-configured kinds."""
        request = api.ListTemplatesRequest(show_hidden=show_hidden)
        return self._line.ask(self._stub.ListTemplates, request).templates

    def set_template(self, template: api.Template, etag: str = "") -> api.Template:
        """Replace a template as a whole, or add it."""
        request = api.UpdateTemplateRequest(template=template, allow_missing=True, etag=etag)
        return self._line.ask(self._stub.UpdateTemplate, request).template


def _go_on(request: api.WatchInstancesRequest, change: api.WatchInstancesResponse) -> None:
    if change.resume_token:
        request.resume_token = change.resume_token


def _ended(status: api.Status) -> bool:
    """Whether it runs no more, and nobody wants it to."""
    stopped = status.state == api.STATE_STOPPED and status.desired_state == api.STATE_STOPPED
    return stopped or status.state == api.STATE_FAILED
