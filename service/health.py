"""``python -m service.health``: exit status 0 when the service on this machine is ready, 1 when it is not.

For the health checks of containers, whose image has no curl. It asks the readiness route on the loopback address at
``TRITONPOSE_PORT``, and imports the standard library only: it runs every few seconds beside the service.
"""

from __future__ import annotations

import http.client
import os
import sys

ROUTE = "/v1/health/ready"
# Shorter than the health check's own limit, so that the reason is told; readiness itself takes 2 s at most.
_SECONDS = 4.0


def unreadiness(port: int) -> str | None:
    """Why the service on loopback's ``port`` is not ready: its own words, or the error; None when it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", ROUTE)
        response = connection.getresponse()
        text = response.read(2000).decode(errors="replace")
        return None if response.status == 200 else f"HTTP {response.status}: {text}"
    except (OSError, http.client.HTTPException) as error:
        return f"no answer at 127.0.0.1:{port}: {error!r}"
    finally:
        connection.close()


def main() -> int:
    """Exit status, and the reason on standard error, which ``docker inspect`` shows."""
    port = os.environ.get("TRITONPOSE_PORT", "8000")
    if not port.isdecimal():
        sys.stderr.write(f"TRITONPOSE_PORT is no port: {port!r}\n")
        return 1
    reason = unreadiness(int(port))
    if reason is not None:
        sys.stderr.write(f"not ready: {reason}\n")
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main())
