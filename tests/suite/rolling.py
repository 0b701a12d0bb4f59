"""Clients of gRPC's own library, which find gatekey by DNS and balance over all that serve: 1 000 Validates a second.

Arguments: the DNS server, the name. Environment: GATEKEY_TOKEN, the caller's credential; GATEKEY_KEY, what is presented.
Each channel has a third of the calls. Prints, as JSON, how many calls were answered, 500 at a time, and once stdin ends how
each channel's calls ended.
"""

import collections
import json
import os
import sys
import threading
import time

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

RATE = 1000
# A slow machine is not asked for more than it can answer.
UNDER_WAY = 300
SERVICE = "gatekey.v1.KeyService"
RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def channel(policy=None, **more):
    config = {"loadBalancingConfig": [{"round_robin": {}}]}
    if policy:
        config["methodConfig"] = [{"name": [{"service": SERVICE}], "retryPolicy": policy}]
    options = {
        "grpc.service_config": json.dumps(config),
        # Else channels would share their connections.
        "grpc.use_local_subchannel_pool": 1,
        # By default it asks DNS again after 30 s at the earliest, which is why a Deployment waits as long between two pods.
        "grpc.dns_min_time_between_resolutions_ms": 200,
        **more,
    }
    return grpc.insecure_channel(f"dns://{sys.argv[1]}/{sys.argv[2]}", list(options.items()))


channels = {
    "retry policy": channel(RETRY),
    "no policy": channel(),
    # Not even of calls that no server has seen.
    "no retries at all": channel(**{"grpc.enable_retries": 0}),
}
pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channels["no policy"]))
method = pool.FindServiceByName(SERVICE).FindMethodByName("Validate")
answer_class = GetMessageClass(method.output_type)
request = GetMessageClass(method.input_type)(key=os.environ["GATEKEY_KEY"]).SerializeToString()
bearer = [("authorization", f"Bearer {os.environ['GATEKEY_TOKEN']}")]
stubs = {
    name: it.unary_unary(
        f"/{SERVICE}/Validate", request_serializer=None, response_deserializer=answer_class.FromString
    )
    for name, it in channels.items()
}

lock = threading.Lock()
ended = {name: collections.Counter() for name in channels}
answered = 0


def note(name, call):
    global answered
    if call.code() is grpc.StatusCode.OK:
        how = "allowed" if call.result().allowed else "refused"
    else:
        how = f"{call.code().name}: {call.details()}"
    with lock:
        ended[name][how] += 1
        answered += 1
        if answered % 500 == 0:
            print(json.dumps({"answered": answered}), flush=True)


def call(name):
    future = stubs[name].future(request, metadata=bearer, timeout=60)
    future.add_done_callback(lambda it: note(name, it))


over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
began, sent = time.monotonic(), 0
while not over.is_set():
    while sent < (time.monotonic() - began) * RATE and sent - answered < UNDER_WAY:
        call(list(channels)[sent % len(channels)])
        sent += 1
    time.sleep(0.001)
while answered < sent:
    time.sleep(0.01)
print(json.dumps({"sent": sent, "seconds": time.monotonic() - began, "ended": ended}), flush=True)
