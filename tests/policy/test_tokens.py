"""assay policy tokenize, detokenize and train-tokenizer. Prints TAP.

    test_tokens.py ASSAY [--as-user] [WORD ...]        WORD selects cases by name

Where the Python package tokenizers is installed, vocabularies trained here are read by it too.
"""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import traceback

ASSAY = sys.argv[1]
WORDS = [word for word in sys.argv[2:] if not word.startswith("--")]
WHO = {"user": 61234, "group": 61234, "extra_groups": []} if "--as-user" in sys.argv else {}
CORPUS = pathlib.Path(__file__).with_name("corpus.txt").read_bytes()
EOS = "<end_of_sentence>"
CASES = []


class Skip(Exception):
    pass


def case(function):
    CASES.append(function)
    return function


def assay(*args, rc=0, stdin=b""):
    done = subprocess.run([ASSAY, "policy", *map(str, args)], capture_output=True, input=stdin, check=False, **WHO)
    assert done.returncode == rc, f"{args}: {done.returncode} {done.stderr}"
    return done.stdout if rc == 0 else done.stderr.decode()


def trained(tmp, vocab=400):
    (tmp / "corpus.txt").write_bytes(CORPUS)
    answer = json.loads(assay("train-tokenizer", "--vocab", vocab, "--out", tmp / "t", "--json", tmp / "corpus.txt"))
    assert answer["vocab_size"] == vocab and answer["end_of_sentence"] == vocab - 3, answer
    return tmp / "t"


@case
def text_becomes_ids_and_text_again(tmp):
    where = trained(tmp)
    text = "Hello's 1234!\n世界 ".encode() + bytes(range(256))
    ids = assay("tokenize", "--tokenizer", where, stdin=text)
    assert assay("detokenize", "--tokenizer", where, stdin=ids) == text
    answer = json.loads(assay("tokenize", "--tokenizer", where, "--json", "-", stdin=text))
    assert answer["tokens"] == [int(word) for word in ids.split()] and answer["count"] == len(answer["tokens"])
    (tmp / "ids").write_text(json.dumps(answer["tokens"]))
    got = json.loads(assay("detokenize", "--tokenizer", where, "--json", tmp / "ids"))
    assert got["text"] == text.decode(errors="replace")


@case
def merges_alone_give_the_same_ids(tmp):
    where = trained(tmp)
    ids = assay("tokenize", "--tokenizer", where, tmp / "corpus.txt")
    (where / "tokenizer.json").unlink()
    assert assay("tokenize", "--tokenizer", where, tmp / "corpus.txt") == ids


@case
def special_tokens_come_only_when_asked_for(tmp):
    where, text = trained(tmp), f"a{EOS}b".encode()
    plain = assay("tokenize", "--tokenizer", where, stdin=text).split()
    asked = assay("tokenize", "--tokenizer", where, "--specials", stdin=text).split()
    assert b"397" not in plain and asked == [b"97", b"397", b"98"], (plain, asked)
    assert assay("detokenize", "--tokenizer", where, stdin=b" ".join(asked)) == b"ab"
    assert assay("detokenize", "--tokenizer", where, "--specials", stdin=b" ".join(asked)) == text


@case
def a_chat_is_tokenised_in_the_template(tmp):
    where = trained(tmp)
    chat = json.dumps({"messages": [{"role": "user", "content": EOS}]}).encode()
    ids = assay("tokenize", "--tokenizer", where, "--chat", stdin=chat)
    text = assay("detokenize", "--tokenizer", where, "--specials", stdin=ids).decode()
    begin = "<beginning_of_sentence>"
    assert text == f"<begin_of_document>{begin}user name=user\n{EOS}{EOS}\n{begin}ai name=assistant\n", text
    assert ids.split().count(b"397") == 1, ids
    bare = assay("tokenize", "--tokenizer", where, "--chat", "--document-start", "none", stdin=chat)
    assert bare.split() == ids.split()[1:]
    vllm = assay("tokenize", "--tokenizer", where, "--chat", "--style", "vllm", stdin=chat)
    assert b"MiniMax AI" in assay("detokenize", "--tokenizer", where, stdin=vllm)


@case
def bad_input_is_named(tmp):
    where = trained(tmp)
    rows = [
        (("tokenize",), b"", 2, "tokenize needs --tokenizer DIR"),
        (("tokenize", "--tokenizer", tmp), b"", 3, "no tokenizer.json and no merges.txt"),
        (("tokenize", "--tokenizer", where, tmp / "absent"), b"", 3, "absent: there is no such file"),
        (("tokenize", "--tokenizer", where, "--chat"), b"[", 2, "line 1 column 1"),
        (("tokenize", "--tokenizer", where, "--chat"), b'{"message":[]}', 2, "did you mean messages?"),
        (("tokenize", "--tokenizer", where, "--chat"), b'{"messages":[{"role":"x"}]}', 2, "messages[0].role"),
        (("tokenize", "--tokenizer", where, "--chat", "--style", "x"), b"{}", 2, "--style: x"),
        (("tokenize", "--tokenizer", where, "--chat", "--document-start", "x"), b"{}", 2, "--document-start: x"),
        (("detokenize", "--tokenizer", where), b"1 2 x", 2, "x: is no token id"),
        (("detokenize", "--tokenizer", where), b"1 400", 2, "token 1: there is no id 400"),
        (("detokenize", "--tokenizer", where), b"-1", 2, "-1: is no token id"),
        (("detokenize", "--tokenizer", where), b"99999999999999999999", 2, "is no token id"),
        (("train-tokenizer", "--vocab", "many", "--out", tmp, tmp / "corpus.txt"), b"", 2, "--vocab N"),
        (("train-tokenizer", "--vocab", "259", "--out", tmp, tmp / "corpus.txt"), b"", 2, "259 is not between"),
        (("train-tokenizer", "--vocab", "300", "--out", tmp / "a" / "b", tmp / "corpus.txt"), b"", 1, "mkdir"),
    ]
    for args, stdin, code, why in rows:
        said = assay(*args, stdin=stdin, rc=code)
        assert why in said, (args, said)


@case
def tokenizers_of_hugging_face_answers_the_same(tmp):
    try:
        import tokenizers
    except ImportError as missing:
        raise Skip("no Python package tokenizers") from missing
    where = trained(tmp, 560)
    theirs = tokenizers.Tokenizer.from_file(str(where / "tokenizer.json"))
    rng = random.Random(1)
    words = CORPUS.decode().split(" ") + [" ", "\n", "\t", "\r\n", "  ", "//", "'S", "é", "世", "\u180e", "\u200d"]
    for _ in range(300):
        text = rng.choice(["", " "]).join(rng.choice(words) for _ in range(rng.randint(1, 30)))
        ids = [int(word) for word in assay("tokenize", "--tokenizer", where, stdin=text.encode()).split()]
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert theirs.decode(ids) == text


def main():
    chosen = [c for c in CASES if not WORDS or any(word in c.__name__ for word in WORDS)]
    print(f"1..{len(chosen)}")
    failed = 0
    for number, function in enumerate(chosen, 1):
        tmp = pathlib.Path(tempfile.mkdtemp(prefix="assay-tokens-"))
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
