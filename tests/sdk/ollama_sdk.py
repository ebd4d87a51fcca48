#!/usr/bin/env python3
"""The `ollama` package of Python against a running service.

    ollama_sdk.py BASE_URL [--embeddings BASE_URL] [--pull MODEL]

Each function is one promise to its users. Prints a line for each and exits with 1 if one is not
kept. tests/ollama.rs starts the service and this script where python3 has the package.
"""

import argparse
import json
import math
import sys

import ollama

GREEDY = {"temperature": 0, "num_predict": 16}
ASK = [{"role": "user", "content": "Write a function that adds two numbers."}]


def generate(client, _):
    whole = client.generate(model="default", prompt="Add two numbers.", options=GREEDY)
    assert whole.done and whole.response and whole.done_reason in ("stop", "length"), whole
    assert whole.eval_count > 0 and whole.prompt_eval_count > 0, whole
    assert whole.total_duration >= whole.eval_duration > 0, whole
    lines = list(client.generate(model="default:latest", prompt="Add two numbers.", options=GREEDY,
                                 stream=True))
    assert "".join(line.response for line in lines) == whole.response, (lines, whole)
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    more = client.generate(model="default", prompt="And three?", context=whole.context,
                           options=GREEDY)
    assert more.prompt_eval_count > len(whole.context) - 2, more


def raw_suffix_and_load(client, _):
    raw = client.generate(model="default", prompt="def add(a, b):\n", raw=True, options=GREEDY)
    assert raw.response and raw.context is None, raw
    filled = client.generate(model="default", prompt="def add(a, b):\n    return ",
                             suffix="\n\nprint(add(1, 2))\n", options=GREEDY)
    assert filled.done, filled
    loaded = client.generate(model="default", keep_alive="5m")
    assert loaded.done and loaded.done_reason == "load" and loaded.response == "", loaded


def chat(client, _):
    whole = client.chat(model="default", messages=ASK, options=GREEDY)
    assert whole.message.role == "assistant" and whole.message.content, whole
    lines = list(client.chat(model="default", messages=ASK, options=GREEDY, stream=True))
    assert "".join(line.message.content for line in lines) == whole.message.content
    assert lines[-1].done and lines[-1].eval_count == whole.eval_count, lines[-1]


def formats(client, _):
    any_json = client.chat(model="default", messages=ASK, format="json",
                           options={"temperature": 0, "num_predict": 200})
    if any_json.done_reason == "stop":
        json.loads(any_json.message.content)
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}},
              "required": ["city"], "additionalProperties": False}
    for answer in (
        client.chat(model="default", messages=ASK, format=schema,
                    options={"temperature": 0, "num_predict": 60}).message.content,
        client.generate(model="default", prompt="Where?", format=schema,
                        options={"temperature": 0, "num_predict": 60}).response,
        client.generate(model="default", prompt="Where?", format=schema, raw=True,
                        options={"temperature": 0, "num_predict": 60}).response,
    ):
        assert json.loads(answer)["city"] in ("Rome", "Oslo"), answer


def tools(client, _):
    def weather(city: str) -> str:
        """Tells the weather.

        Args:
          city: The city.

        Returns:
          str: The weather.
        """
        return city

    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = ASK + [{"role": "assistant", "content": "", "tool_calls": [call]},
                      {"role": "tool", "tool_name": "weather", "content": "sunny"}]
    answer = client.chat(model="default", messages=messages, tools=[weather], options=GREEDY)
    assert answer.done, answer


def models(client, _):
    listed = client.list().models
    assert listed and listed[0].model == "default" and listed[0].modified_at, listed
    assert listed[0].size > 0, listed
    shown = client.show("default")
    assert shown.details.family and "completion" in shown.capabilities, shown
    assert shown.modelinfo["general.architecture"] == shown.details.family, shown.modelinfo
    running = client.ps().models
    assert running and running[0].context_length > 0 and running[0].expires_at, running


def errors(client, _):
    for ask, status in (
        (lambda: client.generate(model="default", prompt="x", images=["aGk="]), 400),
        (lambda: client.generate(model="default", prompt="x", options={"top_k": "many"}), 400),
        (lambda: client.generate(model="default", prompt="word " * 20000), 400),
        (lambda: client.pull("no-such-model"), 404),
        (lambda: client.delete("no-such-model"), 404),
        (lambda: client.embed(model="default", input="x"), 501),
    ):
        try:
            ask()
            raise AssertionError("it was taken")
        except ollama.ResponseError as error:
            assert error.status_code == status and not error.error.startswith("{"), error


def embeddings(_, client):
    one = client.embed(model="encoder", input="one")
    several = client.embed(model="encoder", input=["one", "two"])
    assert len(several.embeddings) == 2 and several.prompt_eval_count > one.prompt_eval_count
    assert all(abs(a - b) < 1e-5 for a, b in zip(one.embeddings[0], several.embeddings[0]))
    norm = math.sqrt(sum(x * x for x in several.embeddings[1]))
    assert abs(norm - 1) < 1e-4, norm
    old = client.embeddings(model="encoder", prompt="one")
    assert all(abs(a - b) < 1e-5 for a, b in zip(old.embedding, one.embeddings[0]))
    short = client.embed(model="encoder", input="one", dimensions=8)
    assert len(short.embeddings[0]) == 8, short


def pulling(name):
    def pull(client, _):
        def names():
            return [model.model for model in client.list().models]

        steps = list(client.pull(name, stream=True))
        assert steps[0].status == "pulling manifest" and steps[-1].status == "success", steps
        told = [step for step in steps if step.total]
        assert told and all(step.digest.startswith("sha256:") for step in told), steps
        assert told[-1].completed == told[-1].total and name in names(), (told[-1], names())
        assert client.pull(name).status == "success"
        said = client.generate(model=name, prompt="a", options={"num_predict": 3})
        assert said.eval_count == 3, said
        client.generate(model=name, keep_alive=0)
        assert client.delete(name).status == "success" and name not in names(), names()

    return pull


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("--embeddings")
    parser.add_argument("--pull")
    options = parser.parse_args()
    client = ollama.Client(host=options.base_url)
    embedder = ollama.Client(host=options.embeddings) if options.embeddings else None
    promises = [generate, raw_suffix_and_load, chat, formats, tools, models, errors]
    if embedder:
        promises.append(embeddings)
    if options.pull:
        promises.append(pulling(options.pull))
    is_kept = True
    for promise in promises:
        try:
            promise(client, embedder)
            print(f"ok    {promise.__name__}")
        except Exception as error:  # the next promise is worth knowing, too
            is_kept = False
            print(f"NOT   {promise.__name__}: {type(error).__name__}: {error}")
    sys.exit(0 if is_kept else 1)


main()
