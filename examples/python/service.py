"""A FastAPI application whose requests need a key. Environment: that of gatekey_fastapi.py, and PORT."""

import os
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI
from gatekey_fastapi import requires

app = FastAPI()


@app.get("/")
async def reports(key: Annotated[Any, Depends(requires("reports:read"))]):
    return {"owner": key.owner_id}


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
    socket = config.bind_socket()
    socket.listen()
    print(f"http://127.0.0.1:{socket.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[socket])
