"""assay policy serve over its sockets. Prints TAP.

    test_serve.py ASSAY [--as-user] [WORD ...]        WORD selects cases by name
"""
import http.client
import json
import os
import resource
import socket
import subprocess
import sys

from serve_lab import ANSWER, ASSAY, ENV, REASON, SAID, WHO, Server, main, wait_for

CASES = []


def case(function):
    CASES.append(function)
    return function


@case
def models_tokens_and_health_are_told(tmp):
    with Server(tmp) as s:
        model = s.ask("GET", "/v1/models")["data"][0]
        assert model["id"] == "m" and model["max_model_len"] == 512 and model["weight_version"] == 1
        assert s.ask("GET", "/healthz") == {"status": "ok"}
        got = s.post("/tokenize", prompt="Hello <end_of_sentence> 世界")
        assert got["count"] == len(got["tokens"])
        assert s.post("/detokenize", tokens=got["tokens"])["prompt"] == "Hello <end_of_sentence> 世界"
        assert os.stat(s.path).st_mode & 0o777 == 0o600


@case
def one_connection_serves_many_requests(tmp):
    with Server(tmp) as s:
        connection = s.connect()
        connection.connect()
        first = connection.sock
        ask = {"prompt": "x", "max_tokens": 3}
        for method, path, body, status in [
                ("GET", "/healthz", None, 200), ("POST", "/v1/completions", ask, 200),
                ("POST", "/v1/completions", {**ask, "stream": True}, 200), ("GET", "/nowhere", None, 404),
                ("POST", "/v1/completions", {"prompt": 1}, 400), ("POST", "/v1/chat/completions", ask, 400),
                ("GET", "/v1/models/m", None, 200), ("GET", "/v1/models/other", None, 404)]:
            connection.request(method, path, json.dumps(body) if body else None)
            reply = connection.getresponse()
            reply.read()
            assert reply.status == status and connection.sock is first, (path, reply.status)
        assert s.metric("assay_policy_connections") == 2
        connection.close()


@case
def connections_end_when_their_clients_leave(tmp):
    whole = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{"prompt":"x","max_tokens":1} '
    with Server(tmp) as s:
        for sent in (b"", b"GET /he", whole[:-2], whole[:-1], whole):
            for after in (False, True):  # a request that was answered
                connection = s.connect()
                connection.connect()
                if after:
                    connection.request("GET", "/healthz")
                    connection.getresponse().read()
                connection.sock.sendall(sent)
                connection.sock.shutdown(socket.SHUT_WR)
                got = connection.sock.recv(4096)
                assert (b" 200 " in got) <= (sent == whole), (sent, got)
                connection.sock.close()
        wait_for(lambda: s.metric("assay_policy_connections") == 1)


@case
def completions_are_functions_of_their_seed(tmp):
    with Server(tmp) as s:
        ask = {"prompt": "The ", "max_tokens": 12, "seed": 5, "n": 3, "return_token_ids": True, "logprobs": 2,
               "ignore_eos": True, "logprob_source": "raw"}
        one, two = s.post("/v1/completions", **ask), s.post("/v1/completions", **ask)
        assert [c["token_ids"] for c in one["choices"]] == [c["token_ids"] for c in two["choices"]]
        assert len({tuple(c["token_ids"]) for c in one["choices"]}) == 3
        choice = one["choices"][1]
        assert choice["index"] == 1 and choice["finish_reason"] == "length" and choice["weight_version"] == 1
        assert len(choice["token_ids"]) == 12 == len(choice["logprobs"]["token_logprobs"])
        assert all(x <= 0 for x in choice["logprobs"]["token_logprobs"])
        assert one["usage"] == {"prompt_tokens": len(choice["prompt_token_ids"]), "completion_tokens": 36,
                                "total_tokens": 36 + len(choice["prompt_token_ids"])}
        alone = s.post("/v1/completions", **{**ask, "n": 1, "seed": 6, "prompt": choice["prompt_token_ids"]})
        assert alone["choices"][0]["token_ids"] == choice["token_ids"], "sample i draws with seed + i"
        generated = s.post("/inference/v1/generate", token_ids=choice["prompt_token_ids"],
                           sampling_params={"max_tokens": 12, "seed": 6, "ignore_eos": True})
        assert generated["choices"][0]["token_ids"] == choice["token_ids"]


@case
def streams_add_up_to_the_whole(tmp):
    with Server(tmp) as s:
        for path, ask in [("/v1/completions", {"prompt": "The ", "n": 2}),
                          ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 2})]:
            ask = {**ask, "max_tokens": 20, "seed": 1, "return_token_ids": True}
            whole = s.post(path, **ask)
            events = s.events(path, **ask, stream_options={"include_usage": True})
            assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
            for choice in whole["choices"]:
                mine = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
                assert sum((c["token_ids"] for c in mine), []) == choice["token_ids"]
                assert mine[-1]["finish_reason"] == choice["finish_reason"]
                if "text" in choice:
                    assert "".join(c["text"] for c in mine) == choice["text"]
                else:
                    text = "".join(c["delta"].get("content") or "" for c in mine)
                    assert text == (choice["message"]["content"] or "") and mine[0]["delta"]["role"] == "assistant"


@case
def logprobs_of_a_prompt_are_those_that_sampling_records(tmp):
    with Server(tmp) as s:
        ask = {"prompt": "The ", "max_tokens": 30, "seed": 2, "ignore_eos": True, "return_token_ids": True}
        drawn = s.post("/v1/completions", **ask, logprobs=0, logprob_source="raw")["choices"][0]
        ids = drawn["prompt_token_ids"] + drawn["token_ids"]
        for k in (0, 3):
            given = s.post("/inference/v1/generate", token_ids=ids, sampling_params={"max_tokens": 1, "prompt_logprobs": k})
            rows = given["prompt_logprobs"]
            assert rows[0] is None and len(rows) == len(ids)
            for token, row in zip(ids[1:], rows[1:]):
                assert {"logprob", "rank", "decoded_token"} == set(row[str(token)])
                ranks = sorted(entry["rank"] for entry in row.values())
                assert ranks[:k] == list(range(1, k + 1)) and len(row) <= k + 1
                assert row[str(token)]["rank"] <= k or row[str(token)]["rank"] == ranks[-1]
            n = len(drawn["prompt_token_ids"])
            assert [row[str(t)]["logprob"] for t, row in zip(ids[n:], rows[n:])] == drawn["logprobs"]["token_logprobs"]
        two = s.post("/v1/completions", prompt=[ids, ids[:5]], max_tokens=1, prompt_logprobs=0)["choices"]
        assert two[0]["prompt_logprobs"] == [r and {str(t): r[str(t)]} for t, r in zip(ids, rows)]
        assert len(two[1]["prompt_logprobs"]) == 5
        chat = s.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}], max_tokens=1,
                      prompt_logprobs=1, return_token_ids=True)
        assert len(chat["prompt_logprobs"]) == len(chat["prompt_token_ids"]) == chat["usage"]["prompt_tokens"]
        assert s.post("/v1/completions", 400, **ask, prompt_logprobs=1, stream=True)["error"]["param"] == "prompt_logprobs"


@case
def only_allowed_tokens_are_drawn(tmp):
    with Server(tmp) as s:
        ask = {"prompt": "x", "max_tokens": 40, "n": 4, "return_token_ids": True, "allowed_token_ids": [65, 66, 67]}
        got = s.post("/v1/completions", **ask)["choices"]
        assert {t for c in got for t in c["token_ids"]} == {65, 66, 67}
        for ids, param in [([], "allowed_token_ids"), ([10**6], "allowed_token_ids"), ("A", "allowed_token_ids")]:
            assert s.post("/v1/completions", 400, **{**ask, "allowed_token_ids": ids})["error"]["param"] == param
        error = s.post("/v1/completions", 400, **ask, stop_token_ids=[65, 66, 67], min_tokens=2)["error"]
        assert error["param"] == "min_tokens", error


@case
def tool_calls_and_reasoning_come_apart(tmp):
    with Server(tmp, model="talks", context=2048) as s:
        ask = {"messages": [{"role": "user", "content": "Look at it."}], "max_tokens": 1, "temperature": 0, "logprobs": True,
               "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]}
        choice = s.post("/v1/chat/completions", **ask)["choices"][0]
        message = choice["message"]
        assert choice["finish_reason"] == "length", choice
        assert message["reasoning_content"].strip() == REASON and message["content"].strip() == SAID, message
        call, = message["tool_calls"]
        assert call["type"] == "function" and call["function"]["name"] == "look" and call["id"].startswith("call_")
        assert json.loads(call["function"]["arguments"]) == {"path": "a.c"}
        assert bytes(choice["logprobs"]["content"][0]["bytes"]).decode().strip() == ANSWER
        # ended by a stop token it is a call; three tokens are three calls
        token = choice["logprobs"]["content"][0]["id"]
        whole = s.post("/v1/chat/completions", **{**ask, "stop_token_ids": [token]})["choices"][0]
        assert whole["finish_reason"] == "tool_calls" and whole["stop_reason"] == token, whole
        events = s.events("/v1/chat/completions", **{**ask, "n": 2, "max_tokens": 3})
        for index in range(2):
            deltas = [c["delta"] for e in events for c in e["choices"] if c["index"] == index]
            calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
            assert [call["index"] for call in calls] == list(range(len(calls))) and len(calls) >= 1, deltas
            assert "".join(d.get("reasoning_content") or "" for d in deltas).count(REASON) == 1
        # what was answered can be said again
        turn = {"role": "assistant", **{k: message[k] for k in ("content", "reasoning_content", "tool_calls")}}
        back = ask["messages"] + [turn, {"role": "tool", "tool_call_id": call["id"], "content": "int x;"}]
        assert s.post("/v1/chat/completions", **{**ask, "messages": back})["choices"][0]["message"]["tool_calls"]


@case
def stop_strings_are_never_shown(tmp):
    with Server(tmp) as s:
        ask = {"prompt": "The ", "max_tokens": 40, "seed": 3, "ignore_eos": True, "return_token_ids": True}
        free = s.post("/v1/completions", **ask)["choices"][0]
        stop = free["text"][8:11]
        want = free["text"].split(stop)[0]
        held = s.post("/v1/completions", **ask, stop=["never there", stop])["choices"][0]
        assert held["text"] == want and held["finish_reason"] == "stop" and held["stop_reason"] == stop
        n = len(held["token_ids"])
        assert 0 < n < 40 and held["token_ids"] == free["token_ids"][:n]
        events = s.events("/v1/completions", **ask, stop=stop)
        assert "".join(e["choices"][0]["text"] for e in events) == want


@case
def bad_requests_name_the_field(tmp):
    bad = [({"temperature": -1}, "temperature"), ({"top_p": "x"}, "top_p"), ({"n": 100000}, "n"), ({"n": 0}, "n"),
           ({"stop": ["x"] * 10**6}, "stop"), ({"stop": ""}, "stop"), ({"stop_token_ids": [10**12]}, "stop_token_ids"),
           ({"prompt": [0, 10**6]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": []}, "prompt"),
           ({"prompt": {}}, "prompt"), ({"top_logprobs": 3}, None), ({"logprobs": 21}, "logprobs"),
           ({"seed": 1.5}, "seed"), ({"temprature": 1}, "temprature"), ({"stream": 1}, "stream"),
           ({"min_p": 2}, "min_p"), ({"top_k": -2}, "top_k"), ({"min_tokens": -1}, "min_tokens"),
           ({"max_tokens": 0}, "max_tokens"), ({"stop": ["x" * 1025]}, "stop"), ({"stop": 5}, "stop"),
           ({"stop": ["a", None]}, "stop"), ({"ignore_eos": "no"}, "ignore_eos"), ({"x" * 10**6: 1}, "x" * 64),
           ({"logprob_source": "both"}, "logprob_source"), ({"prompt_logprobs": 21}, "prompt_logprobs"),
           ({"stop_token_ids": [399999]}, "stop_token_ids"), ({"return_token_ids": 1}, "return_token_ids"),
           ({"stream_options": {"include_usage": True}}, "stream_options"), ({"prompt": ["x"] * 257}, "prompt"),
           ({"n": 2048, "prompt": ["x"] * 3}, "n"), ({"logprobs": 20, "n": 1000, "max_tokens": 100}, "logprobs")]
    with Server(tmp) as s:
        for fields, param in bad:
            error = s.post("/v1/completions", 400, **{"prompt": "x", **fields})["error"]
            assert error["param"] == param or param is None, (list(fields), error)
        error = s.post("/v1/completions", 400, prompt="x", max_tokens=5000)["error"]
        assert "512" in error["message"] and "5000" in error["message"] and error["param"] == "max_tokens", error
        error = s.post("/v1/completions", 400, prompt="x" * 2000)["error"]
        assert "512" in error["message"] and error["param"] == "max_tokens", error
        for body, param in [({"token_ids": [10**6]}, "token_ids"), ({"token_ids": []}, "token_ids"), ({}, "token_ids"),
                            ({"token_ids": [1], "sampling_params": 1}, "sampling_params"),
                            ({"token_ids": [1], "sampling_params": {"n": 0}}, "n")]:
            assert s.post("/inference/v1/generate", 400, **body)["error"]["param"] == param, body
        assert s.post("/v1/completions", 413, prompt="x" * (33 << 20))["error"]["code"] == "body_too_large"
        assert s.post("/pause", 400, request_ids=["x"])["error"]["param"] == "request_ids"
        for text in ['{"temperature": NaN}', '{"temperature": 1e999}', "[", "[]", '{"a":1,"a":2}', "\xff", '{"prompt":"\\ud800"}']:
            s.ask("POST", "/v1/completions", text.encode("latin-1"), 400)
        assert s.post("/v1/completions", 404, prompt="x", model="other")["error"]["code"] == "model_not_found"
        s.post("/v1/chat/completions", 400)
        s.ask("GET", "/nowhere", status=404)
        for path in ("/a/%2e%2e/v1/models", "/v1/models/../x", "/%zz", "/v1/models/%00"):  # libsoup refuses some itself
            try:
                assert s.send("POST", path, b"x" * (1 << 20))[1].status in (400, 404, 405), path
            except OSError:
                pass  # hung up on before the body was sent
            assert s.metric("assay_policy_body_bytes") == 0, path
        assert s.ask("GET", "/v1/models/%6d")["id"] == "m"
        s.ask("GET", "/v1/completions", status=405)
        assert s.metric('assay_policy_requests{state="running"}') == 0


@case
def tcp_asks_for_the_token(tmp):
    (tmp / "token").write_text("x" * 20 + "\n")
    (tmp / "token").chmod(0o644)
    refused = subprocess.run([ASSAY, "policy", "serve", "--model", tmp / "m", "--listen", "127.0.0.1:0"],
                             capture_output=True, env=ENV, check=False, **WHO)
    assert refused.returncode == 2 and b"token-file" in refused.stderr, refused
    with Server(tmp, "--listen", "127.0.0.1:0", "--token-file", str(tmp / "token")) as s:
        host, port = s.ready[1].split(":")
        for header, status in [(None, 401), ("Bearer " + "y" * 20, 401), ("Bearer " + "x" * 20, 200)]:
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            connection.request("GET", "/v1/models", headers={"Authorization": header} if header else {})
            reply = connection.getresponse()
            reply.read()
            connection.close()
            assert reply.status == status, reply.status
        # a stranger's body is not kept: it does not even count towards the limits
        before = s.resident()
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request("POST", "/v1/completions", b" " * (40 << 20))
        assert connection.getresponse().status == 401
        assert s.resident() - before < 16 << 20 or "ASAN_OPTIONS" in os.environ, s.resident() - before
        connection.close()


@case
def readers_that_leave_end_their_samples(tmp):
    with Server(tmp) as s:
        running = 'assay_policy_requests{state="running"}'
        s.ask("POST", "/pause?mode=keep")
        s.ask("POST", "/resume")
        for stream in (True, False):
            connection = s.connect()
            connection.request("POST", "/v1/completions", json.dumps(
                {"prompt": "x", "max_tokens": 500, "n": 64, "ignore_eos": True, "stream": stream}))
            wait_for(lambda: s.metric(running) > 0)
            connection.close()
            wait_for(lambda: s.metric(running) == 0, 5)
        assert s.metric("assay_policy_dropped_total") == 2, s.metric("assay_policy_dropped_total")


@case
def pauses_freeze_or_end_and_weights_change_in_place(tmp):
    with Server(tmp) as s:
        ask = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "return_token_ids": True}
        connection = s.connect()
        connection.request("POST", "/v1/completions", json.dumps({**ask, "n": 64}))
        wait_for(lambda: s.metric('assay_policy_requests{state="running"}') > 0)
        s.ask("POST", "/pause?mode=keep")
        before = s.metric('assay_policy_tokens_total{kind="completion"}')
        assert s.post("/v1/completions", 503, **ask)["error"]["code"] == "policy_paused"
        assert s.post("/update_weights", kind="checkpoint", path=str(tmp / "m2"))["weight_version"] == 2
        assert s.metric('assay_policy_tokens_total{kind="completion"}') == before < 64 * 400
        assert s.post("/update_weights", 400, path=str(tmp / "m3"))["error"]["param"] == "path"
        s.post("/update_weights", 404, path=str(tmp / "none"))
        s.ask("POST", "/resume")
        choice = json.loads(connection.getresponse().read())["choices"][0]
        assert choice["weight_version"] == [1, 2] and len(choice["token_ids"]) == 400
        connection = s.connect()
        connection.request("POST", "/v1/completions", json.dumps({**ask, "n": 64}))
        wait_for(lambda: s.metric('assay_policy_requests{state="running"}') > 0)
        s.ask("POST", "/pause?mode=abort")
        choice = json.loads(connection.getresponse().read())["choices"][0]
        assert choice["finish_reason"] == "abort" and len(choice["token_ids"]) < 400


@case
def a_pause_that_waits_lets_open_calls_end(tmp):
    with Server(tmp) as s:
        call, waiter = s.connect(), s.connect()
        call.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 500, "n": 64, "ignore_eos": True}))
        wait_for(lambda: s.metric('assay_policy_requests{state="running"}') > 0)
        waiter.request("POST", "/pause?mode=wait")
        wait_for(lambda: s.ask("GET", "/is_paused")["is_paused"])
        assert s.post("/v1/completions", 503, prompt="x")["error"]["code"] == "policy_paused"
        assert json.loads(waiter.getresponse().read()) == {"is_paused": True}
        assert s.metric('assay_policy_requests{state="running"}') == 0
        reply = json.loads(call.getresponse().read())
        assert all(len(c["text"]) > 0 and c["finish_reason"] == "length" for c in reply["choices"])
        s.ask("POST", "/resume")
        s.post("/v1/completions", prompt="x", max_tokens=1)


@case
def latencies_are_counted(tmp):
    with Server(tmp) as s:
        s.post("/v1/completions", prompt="x", max_tokens=8, n=3, ignore_eos=True)
        s.events("/v1/completions", prompt="x", max_tokens=8, ignore_eos=True)
        for name, count in [("assay_policy_ttft_seconds", 2), ("assay_policy_token_seconds", 28),
                            ("assay_policy_e2e_seconds", 2), ("assay_policy_queue_seconds", 2),
                            ("vllm:time_to_first_token_seconds", 2), ("vllm:e2e_request_latency_seconds", 2)]:
            assert s.metric(name + "_count") == count == s.metric(name + '_bucket{le="+Inf"}'), name
            assert s.metric(name + "_sum") >= 0
            ends = [float(line.rsplit(" ", 1)[1]) for line in s.ask("GET", "/metrics").splitlines()
                    if line.startswith(name + "_bucket")]
            assert ends == sorted(ends) and len(ends) == 20


@case
def a_thousand_idle_connections_cost_little(tmp):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2200:
        return "needs 2200 descriptors"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2200), hard))
    with Server(tmp) as s:
        s.post("/v1/completions", prompt="x", n=64, max_tokens=8)
        before = s.resident()
        idle = [s.connect() for _ in range(1000)]
        for connection in idle:
            connection.connect()
        wait_for(lambda: s.metric("assay_policy_connections") >= 1000)
        s.post("/v1/completions", prompt="x", n=64, max_tokens=8)
        grown = s.resident() - before
        # sanitizers keep what was freed
        assert grown < 64 << 20 or "ASAN_OPTIONS" in os.environ, grown
        for connection in idle:
            connection.close()
        wait_for(lambda: s.metric("assay_policy_connections") < 10)
    return None


sys.exit(main(CASES))
