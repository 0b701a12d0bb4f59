// An HTTP service that lets gatekey decide about each request.
//
// Environment: GATEKEY_CREDENTIAL, a key of tenant `system` with scope `*:keys:validate`; GATEKEY_TARGET, a gRPC
// target; GATEKEY_CA_FILE, for TLS; GATEKEY_PROTO, the folder of the proto files; PORT.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { GATEKEY_CREDENTIAL, GATEKEY_CA_FILE } = process.env;
const TARGET = process.env.GATEKEY_TARGET ?? "127.0.0.1:50051";
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

const definition = loadSync("gatekey/v1/key_service.proto", {
  includeDirs: [process.env.GATEKEY_PROTO ?? "proto"],
  keepCase: true,
  enums: String,
  longs: String,
  defaults: true,
});
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

/** Returns gatekey's decision, or null if there is none. */
function check(authorization, scope, clientIp) {
  const request = { authorization, required_scopes: [scope], client_ip: clientIp };
  const options = { deadline: Date.now() + DEADLINE };
  return new Promise((resolve) => {
    gatekey.Validate(request, bearer, options, (error, decision) => {
      if (error) {
        console.error(`gatekey: ${grpc.status[error.code]}: ${error.details}`);
      }
      resolve(error ? null : decision);
    });
  });
}

function answer(response, status, body) {
  response.statusCode = status;
  response.setHeader("Content-Type", "application/json");
  if (status === 401) {
    response.setHeader("WWW-Authenticate", "Bearer");
  }
  response.end(JSON.stringify(body));
}

const server = createServer(async (request, response) => {
  // The address of the peer. Behind a proxy: the one address that your proxy saw.
  const { remoteAddress } = request.socket;
  const decision = await check(request.headers.authorization ?? "", "reports:read", remoteAddress);
  if (decision === null) {
    answer(response, 503, { error: "UNAVAILABLE" });
  } else if (decision.allowed) {
    answer(response, 200, { owner: decision.owner_id });
  } else {
    answer(response, decision.http_status, { error: decision.reason, message: decision.message });
  }
});
server.listen(Number(process.env.PORT ?? 8080), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}`);
});
