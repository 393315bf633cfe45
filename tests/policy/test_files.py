"""assay policy init, inspect, verify and flops, and what they do with bad files. Prints TAP.

    test_files.py ASSAY [--as-user] [WORD ...]        WORD selects cases by name

Files are read here by a second reader, written from the format's description alone; where the
Python package safetensors is installed, by that too.
"""
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

ASSAY = sys.argv[1]
WORDS = [word for word in sys.argv[2:] if not word.startswith("--")]
WHO = {"user": 61234, "group": 61234, "extra_groups": []} if "--as-user" in sys.argv else {}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
CASES = []


class Skip(Exception):
    pass


def case(function):
    CASES.append(function)
    return function


def assay(*args, rc=0, **more):
    done = subprocess.run([ASSAY, "policy", *map(str, args)], capture_output=True, text=True, check=False, **WHO, **more)
    assert done.returncode == rc, f"{args}: {done.returncode} {done.stderr}"
    return done.stdout if rc == 0 else done.stderr


def init(path, *more, rc=0, preset="tiny", **options):
    return assay("init", "--preset", preset, "--out", path, "--quiet", *more, rc=rc, **options)


def read_file(path):
    """{name: (dtype, shape, bytes)} by the format's description; checks that nothing is left over."""
    raw = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    header.pop("__metadata__", None)
    spans, found = [], {}
    for name, value in header.items():
        first, end = value["data_offsets"]
        count = SIZES[value["dtype"]]
        for dim in value["shape"]:
            count *= dim
        assert end - first == count and (8 + length + first) % SIZES[value["dtype"]] == 0, name
        spans.append((first, end))
        found[name] = (value["dtype"], value["shape"], data[first:end])
    at = 0
    for first, end in sorted(spans):
        assert first == at
        at = end
    assert at == len(data)
    return found


def doubles(dtype, raw):
    if dtype == "BF16":
        wide = b"".join(b"\0\0" + raw[i:i + 2] for i in range(0, len(raw), 2))
        return struct.unpack(f"<{len(raw) // 2}f", wide)
    code = {"F64": "d", "F32": "f", "F16": "e"}[dtype]
    return struct.unpack(f"<{len(raw) // SIZES[dtype]}{code}", raw)


def m1_config():
    """The published config.json, by its description."""
    alpha = 3.5565588200778455
    config = {"architectures": ["MiniMaxM1ForCausalLM"], "hidden_size": 6144, "num_hidden_layers": 80,
              "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
              "attn_type_list": [int(i % 8 == 7) for i in range(80)], "num_local_experts": 32,
              "num_experts_per_tok": 2, "intermediate_size": 9216, "shared_intermediate_size": 0,
              "hidden_act": "silu", "rms_norm_eps": 1e-5, "postnorm": True, "rotary_dim": 64,
              "rope_theta": 10000000, "max_position_embeddings": 10240000, "sliding_window": None,
              "tie_word_embeddings": False, "vocab_size": 200064, "bos_token_id": None}
    for part in ("full_attention", "linear_attention", "mlp"):
        config |= {f"layernorm_{part}_alpha": alpha, f"layernorm_{part}_beta": 1.0}
    return config


@case
def a_made_model_is_what_inspect_and_verify_say(tmp):
    init(tmp / "m", "--dtype", "f32")
    seen = json.loads(assay("inspect", tmp / "m", "--json"))
    assert seen["parameters"] == 39824 and seen["checkpoint"] == {
        "found": "weights", "tensors": 155, "files": 1, "bytes": 4 * 39824}
    checked = json.loads(assay("verify", tmp / "m", "--json"))
    assert checked["good"] and checked["tensors"] == 155
    assert assay("verify", tmp / "m").strip() == checked["digest"]
    found = read_file(tmp / "m" / "model.safetensors")
    assert len(found) == 155 and found["lm_head.weight"][1] == [29, 16]
    assert set(doubles(*found["model.norm.weight"][::2])) == {1.0}


@case
def a_seed_decides_everything_and_a_narrow_type_rounds(tmp):
    for name, *more in (("a", "--dtype", "f64"), ("b", "--dtype", "f64"), ("h", "--dtype", "bf16"), ("f", "--dtype", "f16"),
                        ("c", "--dtype", "f64", "--seed", "1")):
        init(tmp / name, *more)
    files = {name: read_file(tmp / name / "model.safetensors") for name in "abchf"}
    assert files["a"] == files["b"] != files["c"]
    for name, (_, _, raw) in files["a"].items():
        exact = doubles("F64", raw)
        for narrow, bits in (("h", 8), ("f", 11)):
            dtype, _, data = files[narrow][name]
            if dtype == "F32":
                assert name.endswith("block_sparse_moe.gate.weight")
                continue
            for x, y in zip(exact, doubles(dtype, data)):
                assert abs(x - y) <= abs(x) * 2.0 ** -bits + 2.0 ** -25, (name, x, y)


def fp8(code):
    size = (code & 7) * 2.0 ** -9 if code & 0x78 == 0 else (8 + (code & 7)) * 2.0 ** ((code >> 3 & 15) - 10)
    return -size if code & 0x80 else size


def decoded(found, name):
    """The values of a matrix of codes, by docs/policy.md alone."""
    (dtype, (n, pitch), codes), (_, (_, groups), scales) = found[name], found[name + "_scale"]
    scales, width, tall = doubles("BF16", scales), {"I8": 128, "F8_E4M3": 128, "U8": 32}[dtype], 128 if dtype == "F8_E4M3" else 1

    def code(row, col):
        if dtype == "U8":
            half = codes[row * pitch + col // 2] >> 4 * (col % 2) & 15
            return half - 16 * (half > 7)
        byte = codes[row * pitch + col]
        return fp8(byte) if dtype == "F8_E4M3" else byte - 256 * (byte > 127)
    cols = pitch * 2 if dtype == "U8" else pitch
    return [code(r, c) * scales[r // tall * groups + c // width] for r in range(n) for c in range(cols)]


@case
def matrices_of_few_bits_decode_to_what_they_were(tmp):
    init(tmp / "m", "--dtype", "f32")
    exact = read_file(tmp / "m" / "model.safetensors")
    for weights, coarse in ("int8", 1 / 250), ("fp8", 1 / 15), ("int4", 1 / 13):
        assay("quantize", tmp / "m", "--weights", weights, "--out", tmp / weights)
        found = read_file(tmp / weights / "model.safetensors")
        coded = [name for name in found if name + "_scale" in found]
        assert len(coded) + len(exact) == len(found)
        assert any("self_attn" in name for name in coded) == (weights != "int8")
        assert all("experts" in name or "self_attn" in name for name in coded)
        for name in coded:
            values = doubles(*exact[name][::2])
            most = max(map(abs, values))
            assert all(abs(x - y) <= most * coarse for x, y in zip(values, decoded(found, name), strict=True)), name
        checked = json.loads(assay("verify", tmp / weights, "--json"))
        assert checked["good"] and checked["parameters"] == 39824
        assert json.loads(assay("inspect", tmp / weights, "--json"))["checkpoint"]["found"] == "weights"


def rewrite(path, change):
    """The file with header and data as `change` leaves them: {name: [dtype, shape, bytes]}."""
    tensors = {name: list(value) for name, value in read_file(path).items()}
    change(tensors)
    header, data = {}, b""
    for name, (dtype, shape, raw) in sorted(tensors.items(), key=lambda item: -SIZES[item[1][0]]):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@case
def codes_that_lie_are_refused_by_name(tmp):
    init(tmp / "m", "--dtype", "f32")
    expert, norm = "model.layers.0.block_sparse_moe.experts.1.w1.weight", "model.norm.weight"

    def cut(tensors):
        tensors[expert][1][0] -= 1
        tensors[expert][2] = tensors[expert][2][:-tensors[expert][1][1]]

    def no_scale(tensors):
        del tensors[expert + "_scale"]

    def other_scale(tensors):
        tensors[expert + "_scale"][0] = "F16"

    def few_scales(tensors):
        tensors[expert + "_scale"][1:] = [[1, 1], tensors[expert + "_scale"][2][:2]]

    def coded_norm(tensors):
        tensors[norm] = ["I8", tensors[norm][1], tensors[norm][2][::2]]

    def scale_alone(tensors):
        tensors[norm + "_scale"] = ["BF16", [1, 1], b"\0\0"]
    for number, (change, words) in enumerate((
            (cut, f"{expert}: codes U8"), (no_scale, f"{expert}: U8 without"), (other_scale, f"{expert}: scales F16"),
            (few_scales, f"{expert}: scales BF16 [1, 1]"), (coded_norm, f"{norm}: I8: this tensor is never"),
            (scale_alone, f"extra ({norm}_scale)"))):
        assay("quantize", tmp / "m", "--weights", "int4", "--out", tmp / f"q{number}")
        rewrite(tmp / f"q{number}" / "model.safetensors", change)
        told = assay("verify", tmp / f"q{number}", rc=2)
        assert words in told, told
    assert "--weights: bf16 is not" in assay("quantize", tmp / "m", "--weights", "bf16", "--out", tmp / "x", rc=2)
    assert "int5 is none of" in assay("quantize", tmp / "m", "--weights", "int5", "--out", tmp / "x", rc=2)
    assert "already" in assay("quantize", tmp / "m", "--weights", "int8", "--out", tmp / "m", rc=1)


@case
def the_published_config_alone_gives_the_published_counts(tmp):
    path = tmp / "config.json"
    path.write_text(json.dumps(m1_config()))
    seen = json.loads(assay("inspect", path, "--json", "--tp", 8, "--batch", 64, "--context", 16384, "--memory", 141))
    assert seen["parameters"] == 456089655296 and seen["parameters_active"] == 45943357440
    assert seen["checkpoint"] == {"found": "config"}
    formats = seen["memory_per_rank"]["formats"]
    assert set(formats) == {"f32", "bf16", "fp8", "int4"} and formats["f32"]["sequences_that_fit"] == 0
    assert [round(formats[f]["weights_sum"] / 1e9) for f in ("bf16", "fp8", "int4")] == [114, 57, 34]
    assert 64 < formats["bf16"]["sequences_that_fit"] < formats["fp8"]["sequences_that_fit"]
    assert "456,089,655,296" in assay("inspect", tmp)


@case
def an_index_without_its_files_is_checked_by_name(tmp):
    init(tmp / "m")
    names = list(read_file(tmp / "m" / "model.safetensors"))
    (tmp / "m" / "model.safetensors").unlink()
    index = tmp / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {name: "x.safetensors" for name in names}}))
    assert json.loads(assay("inspect", tmp / "m", "--json"))["checkpoint"] == {"found": "index", "tensors": 155}
    index.write_text(json.dumps({"weight_map": {name: "x.safetensors" for name in names[:-1]} | {"evil\033[2J": "x.safetensors"}}))
    said = assay("inspect", tmp / "m", rc=2)
    assert "1 missing" in said and "1 extra (evil\\x1b[2J)" in said
    assert "x.safetensors: there is no such file" in assay("verify", tmp / "m", rc=3)


@case
def bad_files_are_refused_with_their_reason(tmp):
    init(tmp / "m")
    path = tmp / "m" / "model.safetensors"
    good = path.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    for data, says in ((good[:-1], "is outside the"), (good + b"\0", "1 bytes behind"), (good[:7], "no header"),
                       (struct.pack("<Q", 1 << 62) + good[8:], "more than the file holds"),
                       (good.replace(b'"BF16"', b'"BF61"', 1), "dtype BF61"),
                       (good.replace(b"lm_head", b"lm_tail", 1), "1 missing (lm_head.weight); 1 extra (lm_tail.weight)"),
                       (good[:8] + b"[" * length + good[8 + length:], "nested deeper")):
        path.write_bytes(data)
        for command in ("inspect", "verify"):
            assert says in assay(command, tmp / "m", rc=6 if "nested" in says else 2), says
    path.write_bytes(good)
    config = json.loads((tmp / "m" / "config.json").read_text())
    (tmp / "m" / "config.json").write_text(json.dumps(config | {"head_dim": 16}))
    assert "of another shape" in assay("inspect", tmp / "m", rc=2)


@case
def values_that_are_no_numbers_fail_verify(tmp):
    init(tmp / "m", "--dtype", "f32")
    path = tmp / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    done = subprocess.run([ASSAY, "policy", "verify", tmp / "m", "--json"], capture_output=True, text=True, check=False, **WHO)
    checked = json.loads(done.stdout)
    assert done.returncode == 1 and not checked["good"] and checked["not_finite"] == 1 and "lm_head.weight" in done.stderr


@case
def a_killed_init_leaves_a_whole_checkpoint_or_none(tmp):
    for after in (0, 1 << 20, 8 << 20, 24 << 20):
        out = tmp / f"m{after}"
        child = subprocess.Popen([ASSAY, "policy", "init", "--preset", "t14", "--out", out, "--quiet"],
                                 stdout=subprocess.DEVNULL, **WHO)
        until = time.monotonic() + 30
        while child.poll() is None and time.monotonic() < until:
            if out.is_dir() and sum(f.stat().st_size for f in out.glob("*.tmp")) >= after:
                break
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if (out / "model.safetensors").exists():
            read_file(out / "model.safetensors")
        else:
            init(out)  # and it can be made again
            assert json.loads(assay("verify", out, "--json"))["tensors"] == 155


@case
def a_disk_that_is_full_is_said_and_leaves_nothing(tmp):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
    said = init(tmp / "m", rc=1, preexec_fn=limit)
    assert "model.safetensors: write: File too large" in said, said
    assert list((tmp / "m").iterdir()) == []
    (tmp / "config.json").write_text(json.dumps(m1_config() | {"hidden_size": 65536, "intermediate_size": 1 << 20}))
    said = assay("init", "--config", tmp / "config.json", "--out", tmp / "big", rc=6)
    assert "the tensors take 105" in said and "the disk has" in said, said
    assert not (tmp / "big").exists()


@case
def usage_errors_say_what_is_wrong(tmp):
    init(tmp / "m")
    for args, says in ((("init",), "--out"), (("init", "--out", tmp / "x"), "--preset or --config"),
                       (("init", "--out", tmp / "x", "--preset", "tiny", "--config", "y"), "--preset or --config"),
                       (("init", "--out", tmp / "x", "--preset", "tiny", "--dtype", "int4"), "int4 is none of"),
                       (("init", "--out", tmp / "x", "--preset", "tiny", "--seed", "1e3"), "1e3 is not a whole number"),
                       (("inspect", tmp / "m", "--tp", "3"), "tp = 3 does not divide 4 heads"),
                       (("inspect", tmp / "m", "--context", "-5"), "-5 is not a whole number")):
        assert says in assay(*args, rc=2), (args, says)
    assert "presets: tiny, t14" in init(tmp / "x", preset="gpt", rc=3)
    assert "is there already" in init(tmp / "m", rc=1)
    assert not (tmp / "x").exists()


@case
def flops_prints_the_papers_figure(tmp):
    rows = [json.loads(line) for line in assay("flops", "--json").splitlines()]
    ratio = {(row["count"], row["tokens"] // 1024): (row["m1_to_r1"], row["m1_to_qwen3"]) for row in rows}
    assert abs(ratio["paper", 64][0] - 0.385) < 6e-4 and abs(ratio["paper", 100][0] - 0.2875) < 6e-5
    assert abs(ratio["exact", 100][0] - 0.339) < 6e-4 and abs(ratio["absorbed", 100][0] - 0.118) < 6e-4
    (tmp / "config.json").write_text(json.dumps(m1_config()))
    own = [json.loads(line) for line in assay("flops", tmp, "--json").splitlines()]
    assert all(row["config"] == row["MiniMax-M1"] for row in own if row["count"] == "exact")


@case
def the_safetensors_package_agrees(tmp):
    try:
        import numpy
        from safetensors import numpy as package
    except ImportError as missing:
        raise Skip(f"Python has no {missing.name}") from missing
    init(tmp / "m", "--dtype", "f32")
    ours, theirs = read_file(tmp / "m" / "model.safetensors"), package.load_file(tmp / "m" / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, (_, shape, raw) in ours.items():
        assert list(theirs[name].shape) == shape and theirs[name].tobytes() == raw
    digest = assay("verify", tmp / "m")
    (tmp / "n").mkdir()
    if WHO:
        os.chmod(tmp / "n", 0o755)
    shutil.copy(tmp / "m" / "config.json", tmp / "n")
    package.save_file({name: numpy.ascontiguousarray(value) for name, value in theirs.items()}, tmp / "n" / "model.safetensors")
    assert assay("verify", tmp / "n") == digest


def main():
    chosen = [c for c in CASES if not WORDS or any(word in c.__name__ for word in WORDS)]
    print(f"1..{len(chosen)}")
    failed = 0
    for number, function in enumerate(chosen, 1):
        tmp = pathlib.Path(tempfile.mkdtemp(prefix="assay-policy-"))
        os.chmod(tmp, 0o777)
        try:
            function(tmp)
            print(f"ok {number} - {function.__name__}")
        except Skip as why:
            print(f"ok {number} - {function.__name__} # SKIP {why}")
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {function.__name__}")
            print("".join(f"# {line}\n" for line in traceback.format_exc().splitlines()), end="", flush=True)
        finally:
            shutil.rmtree(tmp)
    return failed > 0


sys.exit(main())
