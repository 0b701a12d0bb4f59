"""An HTTP service that lets gatekey decide about each request.

Environment: GATEKEY_CREDENTIAL, a key of tenant `system` with scope `*:keys:validate`; GATEKEY_TARGET, a gRPC target;
GATEKEY_CA_FILE, for TLS; PORT.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from gatekey.v1 import key_service_pb2, key_service_pb2_grpc

TARGET = os.environ.get("GATEKEY_TARGET", "127.0.0.1:50051")
BEARER = [("authorization", f"Bearer {os.environ['GATEKEY_CREDENTIAL']}")]
CA_FILE = os.environ.get("GATEKEY_CA_FILE")
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


def open_channel():
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    if CA_FILE is None:
        return grpc.insecure_channel(TARGET, options)
    with open(CA_FILE, "rb") as file:
        return grpc.secure_channel(TARGET, grpc.ssl_channel_credentials(file.read()), options)


# One channel for the life of the process; it is safe to share between threads.
gatekey = key_service_pb2_grpc.KeyServiceStub(open_channel())


def check(authorization, scope, client_ip):
    """Returns gatekey's decision, or None if there is none."""
    request = key_service_pb2.ValidateRequest(
        authorization=authorization, required_scopes=[scope], client_ip=client_ip
    )
    try:
        return gatekey.Validate(request, metadata=BEARER, timeout=DEADLINE)
    except grpc.RpcError as error:
        print(f"gatekey: {error.code().name}: {error.details()}", file=sys.stderr)
        return None


class Reports(BaseHTTPRequestHandler):
    def do_GET(self):
        # The address of the peer. Behind a proxy: the one address that your proxy saw.
        decision = check(self.headers.get("Authorization", ""), "reports:read", self.client_address[0])
        if decision is None:
            self.answer(503, {"error": "UNAVAILABLE"})
        elif decision.allowed:
            self.answer(200, {"owner": decision.owner_id})
        else:
            reason = key_service_pb2.Reason.Name(decision.reason)
            self.answer(decision.http_status, {"error": reason, "message": decision.message})

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Reports)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
