"""grpc.health.v1.Health: as etcd, only the server as a whole has a status, and it serves."""

from __future__ import annotations

from google.protobuf.message import Message

from kvstore.errors import Code, RequestError
from kvstore.rpc.call import Call, Method
from kvstore.wire import health_pb2 as pb

SERVICE = "grpc.health.v1.Health"


class UnknownService(RequestError):
    code, text = Code.NOT_FOUND, "unknown service"


class HealthService:
    """Liveness of the listener; `/health` reports whether the cluster has a quorum."""

    def methods(self) -> tuple[Method, ...]:
        return (
            Method(service=SERVICE, name="Check", request_type=pb.HealthCheckRequest, handler=self.check),
            Method(
                service=SERVICE,
                name="Watch",
                request_type=pb.HealthCheckRequest,
                handler=self.watch,
                streaming=True,
            ),
        )

    def check(self, request: pb.HealthCheckRequest, _call: Call) -> Message:
        if request.service:
            raise UnknownService
        return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)

    def watch(self, request: pb.HealthCheckRequest, call: Call) -> None:
        """The status, once: it never changes while the server runs."""
        known = not request.service
        status = pb.HealthCheckResponse.SERVING if known else pb.HealthCheckResponse.SERVICE_UNKNOWN
        call.send(pb.HealthCheckResponse(status=status))
