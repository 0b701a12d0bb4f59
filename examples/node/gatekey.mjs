// Lets gatekey decide about the requests of an Express application.
//
// Environment: GATEKEY_CREDENTIAL, a key of tenant `system` with scope `*:keys:validate`; GATEKEY_TARGET, a gRPC
// target; GATEKEY_CA_FILE, for TLS; GATEKEY_PROTO, the folder of the proto files.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { GATEKEY_CREDENTIAL, GATEKEY_CA_FILE, GATEKEY_PROTO } = process.env;
const TARGET = process.env.GATEKEY_TARGET ?? "127.0.0.1:50051";
const PROTO = GATEKEY_PROTO ?? fileURLToPath(new URL("../../proto", import.meta.url));
// Milliseconds, retries included.
const DEADLINE = 1000;
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "gatekey.v1.KeyService", method: "Validate" }],
      retryPolicy: {
        maxAttempts: 3,
        initialBackoff: "0.05s",
        maxBackoff: "0.5s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

const options = { includeDirs: [PROTO], keepCase: true, enums: String, longs: String, defaults: true };
const definition = loadSync("gatekey/v1/key_service.proto", options);
const { KeyService } = grpc.loadPackageDefinition(definition).gatekey.v1;
const credentials =
  GATEKEY_CA_FILE === undefined
    ? grpc.credentials.createInsecure()
    : grpc.credentials.createSsl(readFileSync(GATEKEY_CA_FILE));
// One client for the life of the process.
const gatekey = new KeyService(TARGET, credentials, {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
});
const bearer = new grpc.Metadata();
bearer.set("authorization", `Bearer ${GATEKEY_CREDENTIAL}`);

function refuse(response, status, error, message) {
  if (status === 401) {
    response.set("WWW-Authenticate", "Bearer");
  }
  response.status(status).json({ error, message });
}

/** Returns a middleware that passes requests whose key has all these scopes; `request.key` is gatekey's decision. */
export function requires(...scopes) {
  return (request, response, next) => {
    const given = request.headersDistinct.authorization ?? [""];
    if (given.length > 1) {
      refuse(response, 401, "REASON_MALFORMED", "Several credentials were presented.");
      return;
    }
    const question = {
      authorization: given[0],
      required_scopes: scopes,
      // The address of the peer. Behind a proxy, configure Express' `trust proxy`.
      client_ip: request.ip,
    };
    gatekey.Validate(question, bearer, { deadline: Date.now() + DEADLINE }, (error, decision) => {
      if (error) {
        console.error(`gatekey: ${grpc.status[error.code]}: ${error.details}`);
        refuse(response, 503, "UNAVAILABLE", "No decision was possible.");
      } else if (decision.allowed) {
        request.key = decision;
        next();
      } else {
        refuse(response, decision.http_status, decision.reason, decision.message);
      }
    });
  };
}
