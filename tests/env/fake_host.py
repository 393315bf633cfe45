#!/usr/bin/env python3
"""A host of episodes that lies, as the seed of the episode tells it. Also a worker that grades nothing."""
import json
import os
import socket
import sys

sock = socket.socket(fileno=3)
if "--episodes" not in sys.argv:
    sock.recv(1)
    sys.exit(0)
lines = sock.makefile("rb")
seeds = {}


def say(text):
    sock.sendall((text if isinstance(text, str) else json.dumps(text)).encode() + b"\n")


def lie(kind, seq):
    good = {"seq": seq, "steps": 1, "end": "open", "data": {"step": 1, "text": "", "error": False}}
    answers = {
        1: "{not json", 2: {**good, "seq": seq + 1000}, 3: {**good, "end": "won"}, 4: {**good, "end": "submitted"},
        5: {**good, "steps": -1}, 6: {**good, "data": 7}, 7: {**good, "error": {"code": 99, "detail": "x"}},
    }
    if kind == 8:
        os._exit(3)
    say(answers[kind])


for line in lines:
    message = json.loads(line)
    if message["op"] == "start":
        say({"event": "ready"})
    elif message["op"] == "load":
        seeds[message["id"]] = int(message["seed"])
        say({"seq": message["seq"], "steps": 0, "end": "open", "data": {}})
    elif message["op"] != "drop":
        lie(seeds[message["id"]], message["seq"])
