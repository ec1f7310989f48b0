"""Development environments: create, start, stop, watch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from fermion.api.instances import v1 as api
from fermion.api.instances.v1 import service_pb2_grpc as stubs

if TYPE_CHECKING:
    from fermion.client import Client

SERVICE = "instances"
Answer = TypeVar("Answer", bound=Message)


class Instances:
    """Development environments of a project; `name` is `projects/{project}/instances/{instance}`."""

    def __init__(self, client: Client) -> None:
        self._client = client

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
        return self._verb("CreateInstance", request, api.CreateInstanceResponse)

    def get(self, name: str, as_of: datetime | None = None) -> api.Instance:
        """Read one, as it is or as it was."""
        request = api.GetInstanceRequest(name=name)
        if as_of is not None:
            request.as_of_time.FromDatetime(as_of)
        return self._verb("GetInstance", request, api.GetInstanceResponse).instance

    def list(self, project: str, filter: str = "", order_by: str = "") -> Iterator[api.Instance]:
        """Every instance of a project, page by page."""
        request = api.ListInstancesRequest(
            parent=f"projects/{project}", filter=filter, order_by=order_by, page_size=1000
        )
        while True:
            page = self._verb("ListInstances", request, api.ListInstancesResponse)
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
        """Follow changes; the last `resume_token` goes on where a broken watch ended."""
        request = api.WatchInstancesRequest(
            parent=f"projects/{project}",
            instance_id=instance_id,
            resume_token=resume_token,
            send_initial=send_initial,
        )
        return self._client.stream(
            SERVICE,
            stubs.InstanceServiceStub,
            "WatchInstances",
            request,
            api.WatchInstancesResponse,
        )

    def update(
        self,
        instance: api.Instance,
        paths: Sequence[str] = (),
        etag: str = "",
        *,
        validate_only: bool = False,
    ) -> api.UpdateInstanceResponse:
        """Change what `paths` name; what runs follows at its next start."""
        request = api.UpdateInstanceRequest(
            instance=instance, etag=etag, validate_only=validate_only
        )
        request.update_mask.paths.extend(paths)
        return self._verb("UpdateInstance", request, api.UpdateInstanceResponse)

    def start(self, name: str) -> api.Instance:
        """Ask for a start."""
        request = api.StartInstanceRequest(name=name)
        return self._verb("StartInstance", request, api.StartInstanceResponse).instance

    def stop(self, name: str) -> api.Instance:
        """Ask for a stop; files and name are kept."""
        request = api.StopInstanceRequest(name=name)
        return self._verb("StopInstance", request, api.StopInstanceResponse).instance

    def restart(self, name: str) -> api.Instance:
        """Ask for a stop and a start after it."""
        request = api.RestartInstanceRequest(name=name)
        return self._verb("RestartInstance", request, api.RestartInstanceResponse).instance

    def delete(self, name: str) -> api.Instance:
        """Ask for its deletion; one that lives is stopped first."""
        request = api.DeleteInstanceRequest(name=name)
        return self._verb("DeleteInstance", request, api.DeleteInstanceResponse).instance

    def template(self, name: str) -> api.Template:
        """Read one template, `templates/{template}`."""
        request = api.GetTemplateRequest(name=name)
        return self._verb("GetTemplate", request, api.GetTemplateResponse).template

    def templates(self, show_hidden: bool = False) -> Sequence[api.Template]:
        """The pre-configured kinds."""
        request = api.ListTemplatesRequest(show_hidden=show_hidden)
        return self._verb("ListTemplates", request, api.ListTemplatesResponse).templates

    def set_template(self, template: api.Template) -> api.Template:
        """Replace a template as a whole, or add it."""
        request = api.UpdateTemplateRequest(template=template, allow_missing=True)
        return self._verb("UpdateTemplate", request, api.UpdateTemplateResponse).template

    def _verb(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        return self._client.call(SERVICE, stubs.InstanceServiceStub, method, request, answer)
