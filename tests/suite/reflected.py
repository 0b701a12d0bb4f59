"""A client that has none of gatekey's code: it asks the server for its messages, issues a key and presents it.

Arguments: the address. Environment: GATEKEY_TOKEN, the caller's credential. Prints the answers, one JSON object a line.
"""

import json
import os
import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(sys.argv[1])
database = ProtoReflectionDescriptorDatabase(channel)
service = DescriptorPool(database).FindServiceByName("gatekey.v1.KeyService")


def call(method, fields):
    method = service.FindMethodByName(method)
    stub = channel.unary_unary(
        f"/{service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
    bearer = ("authorization", f"Bearer {os.environ['GATEKEY_TOKEN']}")
    answer = json_format.MessageToDict(stub(request, metadata=[bearer], timeout=20))
    print(json.dumps(answer))
    return answer


created = call(
    "CreateKey",
    {
        "tenantId": "default",
        "ownerId": "guido",
        "label": "from Python",
        "scopes": ["jobs:*"],
        "metadata": {"team": "búho"},
        "ttl": "3600s",
    },
)
call("Validate", {"key": created["plaintextKey"], "requiredScopes": ["jobs:read"]})
call("Validate", {"authorization": f"Bearer {created['plaintextKey']}", "requiredScopes": ["users:read"]})
