#!/usr/bin/env python3
"""The `openai` SDK against a running service.

    openai_sdk.py BASE_URL [--embeddings BASE_URL]

Each function is one promise to users of the SDK. Prints a line for each and exits with 1 if one is
not kept. tests/openai.rs starts the service and this script where python3 has the SDK.
"""

import argparse
import base64
import json
import math
import struct
import sys

import openai

TOOLS = [{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}]
ASK = [{"role": "user", "content": "Write a function that adds two numbers."}]


def models(client):
    listed = client.models.list().data
    assert listed and listed[0].object == "model", listed
    assert client.models.retrieve(listed[0].id).id == listed[0].id
    try:
        client.models.retrieve("no-such-model")
        raise AssertionError("an unknown model was found")
    except openai.NotFoundError:
        pass


def chat(client):
    answer = client.chat.completions.create(model="m", messages=ASK, temperature=0, max_tokens=20)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def streaming(client):
    whole = client.chat.completions.create(model="m", messages=ASK, temperature=0, max_tokens=20)
    stream = client.chat.completions.create(
        model="m", messages=ASK, temperature=0, max_tokens=20, stream=True,
        stream_options={"include_usage": True})
    text, usage, finish = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content, (text, whole)
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    # The SDK's own accumulator, which is strict about chunks.
    with client.chat.completions.stream(model="m", messages=ASK, temperature=0,
                                        max_tokens=20) as events:
        try:
            final = events.get_final_completion()
        except openai.LengthFinishReasonError as error:
            final = error.completion
    assert final.choices[0].message.content == text


def several_answers(client):
    def ask():
        return client.chat.completions.create(
            model="m", messages=ASK, n=3, seed=5, temperature=1.2, max_tokens=12)
    one, two = ask(), ask()
    assert [c.index for c in one.choices] == [0, 1, 2]
    texts = [c.message.content for c in one.choices]
    assert texts == [c.message.content for c in two.choices], "a seed repeats an answer"


def logprobs(client):
    answer = client.chat.completions.create(
        model="m", messages=ASK, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert "".join(t.token for t in content) == answer.choices[0].message.content
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in content)
    assert all(bytes(t.bytes).decode(errors="replace") == t.token for t in content)
    legacy = client.completions.create(
        model="m", prompt="def add(a, b):", temperature=0, max_tokens=6, logprobs=2)
    probs = legacy.choices[0].logprobs
    assert len(probs.tokens) == len(probs.token_logprobs) == len(probs.text_offset)


def tools(client):
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(
            model="m", messages=ASK, tools=TOOLS, tool_choice=choice, max_tokens=120,
            parallel_tool_calls=False, temperature=0)
        call = answer.choices[0].message.tool_calls[0]
        assert answer.choices[0].finish_reason == "tool_calls", answer
        assert call.type == "function" and call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    stream = client.chat.completions.create(
        model="m", messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=120,
        parallel_tool_calls=False, temperature=0, stream=True)
    name, arguments, ids = "", "", set()
    for chunk in stream:
        for delta in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
            ids.add(delta.id) if delta.id else None
    assert name == "weather" and json.loads(arguments) and len(ids) == 1
    messages = ASK + [answer.choices[0].message,
                      {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    client.chat.completions.create(model="m", messages=messages, tools=TOOLS, tool_choice="none",
                                   max_tokens=4)


def json_schema(client):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "maximum": 9,
                                                        "minimum": 0}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="m", messages=ASK, max_tokens=60, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"ok", "n"} and isinstance(value["ok"], bool)


def completions(client):
    answer = client.completions.create(
        model="m", prompt=["def add(a, b):", "import "], temperature=0, max_tokens=5, n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    parts = client.completions.create(
        model="m", prompt="def add(a, b):", temperature=0, max_tokens=5, stream=True)
    assert "".join(p.choices[0].text for p in parts if p.choices) == answer.choices[0].text


def errors(client):
    for body in ({"temperature": "hot"}, {"top_p": 7}, {"n": 0}):
        try:
            client.chat.completions.create(model="m", messages=ASK, extra_body=body)
            raise AssertionError(f"{body} was taken")
        except openai.BadRequestError as error:
            assert error.param == next(iter(body)), error
    try:
        client.completions.create(model="m", prompt="word " * 4000)
        raise AssertionError("a prompt that is too long was taken")
    except openai.BadRequestError as error:
        assert error.body["n_prompt_tokens"] > error.body["n_ctx"], error.body


def leaving(client):
    stream = client.chat.completions.create(model="m", messages=ASK, max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    chat(client)


def embeddings(client):
    answer = client.embeddings.create(model="m", input=["hello", "world"], encoding_format="float")
    vectors = [item.embedding for item in answer.data]
    assert all(abs(math.fsum(x * x for x in v) - 1) < 1e-4 for v in vectors)
    # The SDK asks for base64 by default and decodes it.
    default = client.embeddings.create(model="m", input="hello").data[0].embedding
    assert all(abs(a - b) < 1e-6 for a, b in zip(default, vectors[0]))
    raw = client.embeddings.with_raw_response.create(
        model="m", input="hello", encoding_format="base64")
    text = json.loads(raw.text)["data"][0]["embedding"]
    decoded = base64.b64decode(text)
    assert len(struct.unpack(f"<{len(decoded) // 4}f", decoded)) == len(vectors[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--embeddings")
    args = parser.parse_args()

    def client(url):
        return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)

    promises = [models, chat, streaming, several_answers, logprobs, tools, json_schema,
                completions, errors, leaving]
    cases = [(promise, args.base_url) for promise in promises]
    if args.embeddings:
        cases.append((embeddings, args.embeddings))
    n_broken = 0
    for promise, url in cases:
        try:
            promise(client(url))
            print(f"ok      {promise.__name__}")
        except Exception as error:  # every promise is looked at
            n_broken += 1
            print(f"BROKEN  {promise.__name__}: {type(error).__name__}: {error}")
    return 1 if n_broken else 0


if __name__ == "__main__":
    sys.exit(main())
