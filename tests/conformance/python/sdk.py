"""Calls what the server SDK `pusher` has, as lines of JSON ask for it, and answers each with a line of JSON.

The first line has the arguments of a client by the id of its app. Then: {"app", "method", "arguments"}.
"""

import json
import sys

import pusher
from pusher.errors import PusherError


def answer(clients, call):
    method = getattr(clients[call["app"]], call["method"])
    try:
        return {"answer": method(**call["arguments"])}
    except (PusherError, ValueError, TypeError) as error:
        return {"error": type(error).__name__, "message": str(error)}


def main():
    clients = {app: pusher.Pusher(**arguments) for app, arguments in json.loads(sys.stdin.readline()).items()}
    for line in sys.stdin:
        # A shared secret is bytes that are text.
        print(json.dumps(answer(clients, json.loads(line)), default=bytes.decode), flush=True)


main()
