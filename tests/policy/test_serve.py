"""assay policy serve over its sockets. Prints TAP.

    test_serve.py ASSAY [--as-user] [WORD ...]        WORD selects cases by name
"""
import http.client
import json
import os
import resource
import subprocess
import sys

from serve_lab import ASSAY, ENV, WHO, Server, main, wait_for

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
           ({"seed": 1.5}, "seed"), ({"temprature": 1}, "temprature"), ({"stream": 1}, "stream")]
    with Server(tmp) as s:
        for fields, param in bad:
            error = s.post("/v1/completions", 400, **{"prompt": "x", **fields})["error"]
            assert error["param"] == param or param is None, (list(fields), error)
        error = s.post("/v1/completions", 400, prompt="x", max_tokens=5000)["error"]
        assert "512" in error["message"] and "5000" in error["message"], error
        for text in ['{"temperature": NaN}', '{"temperature": 1e999}', "[", "[]", '{"a":1,"a":2}', "\xff", '{"prompt":"\\ud800"}']:
            s.ask("POST", "/v1/completions", text.encode("latin-1"), 400)
        assert s.post("/v1/completions", 404, prompt="x", model="other")["error"]["code"] == "model_not_found"
        s.post("/v1/chat/completions", 400)
        s.ask("GET", "/nowhere", status=404)
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
