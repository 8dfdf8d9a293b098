"""From options to a server that listens: the token, the socket, uvicorn, and a clean stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger("stfm")
TOKEN = "STFM_SERVE_TOKEN"
SHORTEST = 16
# Beyond these, and beyond what the queue takes, the next one is told to come again.
CONNECTIONS = 1024
# Bodies of the largest size that are in memory together: what arrives, what waits and what is worked on.
BODIES = 8


def read_token(host: str, file: Path | None) -> str | None:
    """The token from a file or the environment; one is needed where others than this machine can knock."""
    if file is not None and not file.is_file():
        raise UsageError(f"no file at {file}")
    given = file.read_text(encoding="utf-8") if file is not None else os.environ.get(TOKEN)
    token = given.strip() if given is not None else None
    make = "openssl rand -hex 32 > token && stfm serve ... --token-file token"
    if token is None:
        if not _is_loopback(host):
            raise UsageError(
                f"listening on {host} needs a token: others than this machine can reach it",
                expected=f"--token-file FILE, or {TOKEN} in the environment",
                fix=make,
            )
        return None
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            "the token is no token",
            expected=f"at least {SHORTEST} ASCII characters without spaces",
            found=f"{len(token)} characters",
            fix=make,
        )
    return token


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)}
    except OSError as error:
        raise UsageError(f"no host is called '{host}'", found=str(error)) from None
    return all(ip_address(str(a).partition("%")[0]).is_loopback for a in found)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; a port that is taken is an error."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, OverflowError) as error:
        raise StfmError(
            f"cannot listen on {host}:{port}", found=str(error), fix="use another --host or --port"
        ) from None


@dataclass(frozen=True)
class Options:
    """Where to listen, which alias to follow, and what requests may cost. `workers` 0 is one per core."""

    alias: str = "champion"
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    workers: int = 0
    queue: int = 64
    body_mb: float = 32
    rows: int = 1_000_000
    seconds: float = 30
    every: float = 5


def _require_known(name: str, settings: Settings) -> None:
    """Raise where no model could ever appear under `name`; a dataset may have none yet."""
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.registry import connect

    try:
        get_dataset(name)
    except UsageError:
        if not connect(settings).search_registered_models(f"name='{name}'"):
            raise


def make_server(name: str, lake: Lake, settings: Settings, options: Options) -> tuple[uvicorn.Server, socket.socket]:
    """A server for the registered model `name`, and the socket it will answer on."""
    import uvicorn

    from stfm_pipeline.serve.app import Limits, make_app
    from stfm_pipeline.serve.heads import heads_within
    from stfm_pipeline.serve.metrics import Metrics
    from stfm_pipeline.serve.pool import Pool
    from stfm_pipeline.serve.watch import Watch

    token = read_token(options.host, options.token_file)
    _require_known(name, settings)
    listening = listen(options.host, options.port)
    metrics = Metrics()
    watch = Watch(name, options.alias, lake, settings, metrics, options.every)
    limits = Limits(int(options.body_mb * 1e6), options.rows, options.seconds)
    pool = Pool(options.workers, options.queue, BODIES * limits.body)
    config = uvicorn.Config(
        make_app(watch, pool, limits, metrics, token),
        http=heads_within(options.seconds),
        log_config=None,
        access_log=False,
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(options.seconds) + 1,
        server_header=False,
        proxy_headers=False,
        ws="none",
    )
    return uvicorn.Server(config), listening


def serve(name: str, lake: Lake, settings: Settings, options: Options) -> None:
    """Serve the version of `name` under an alias until SIGTERM or SIGINT; what runs then is finished."""
    server, listening = make_server(name, lake, settings, options)
    # uvicorn raises the signal that stopped it once more when it is done; a clean stop is not a failure.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    at = listening.getsockname()
    shown = f"[{at[0]}]" if ":" in at[0] else at[0]
    log.info("%s@%s: http://%s:%d, its page is /docs", name, options.alias, shown, at[1])
    server.run(sockets=[listening])
    log.info("stopped")
