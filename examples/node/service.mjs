// An Express application whose requests need a key. Environment: that of gatekey.mjs, and PORT.

import express from "express";

import { requires } from "./gatekey.mjs";

const app = express();
app.get("/", requires("reports:read"), (request, response) => {
  response.json({ owner: request.key.owner_id });
});

const server = app.listen(Number(process.env.PORT ?? 8080), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}`);
});
