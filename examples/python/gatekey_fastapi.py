"""Lets gatekey decide about the requests of a FastAPI application.

Environment: GATEKEY_CREDENTIAL, a key of tenant `system` with scope `*:keys:validate`; GATEKEY_TARGET, a gRPC target;
GATEKEY_CA_FILE, for TLS.
"""

import json
import os
import sys
from functools import cache

import grpc
from fastapi import HTTPException, Request
from gatekey.v1 import key_service_pb2 as pb
from gatekey.v1 import key_service_pb2_grpc

# Seconds, retries included.
DEADLINE = 1.0
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "gatekey.v1.KeyService", "method": "Validate"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


@cache
def stub():
    """Returns the one client of the process, made in the event loop that uses it."""
    target = os.environ.get("GATEKEY_TARGET", "127.0.0.1:50051")
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    ca_file = os.environ.get("GATEKEY_CA_FILE")
    if ca_file is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        with open(ca_file, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        channel = grpc.aio.secure_channel(target, credentials, options)
    return key_service_pb2_grpc.KeyServiceStub(channel)


def requires(*scopes):
    """Returns a dependency that passes requests whose key has all these scopes, and is gatekey's decision."""

    async def check(request: Request):
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            raise refusal(401, "REASON_MALFORMED", "Several credentials were presented.")
        question = pb.ValidateRequest(
            authorization=given[0] if given else "",
            required_scopes=scopes,
            # The address of the peer. Behind a proxy: the one address that your proxy saw.
            client_ip=request.client.host,
        )
        bearer = [("authorization", f"Bearer {os.environ['GATEKEY_CREDENTIAL']}")]
        try:
            decision = await stub().Validate(question, metadata=bearer, timeout=DEADLINE)
        except grpc.RpcError as error:
            print(f"gatekey: {error.code().name}: {error.details()}", file=sys.stderr, flush=True)
            raise refusal(503, "UNAVAILABLE", "No decision was possible.") from None
        if not decision.allowed:
            raise refusal(decision.http_status, pb.Reason.Name(decision.reason), decision.message)
        return decision

    return check


def refusal(status, code, message):
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return HTTPException(status, {"error": code, "message": message}, headers)
