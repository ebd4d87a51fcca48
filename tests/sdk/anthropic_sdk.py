#!/usr/bin/env python3
"""The `anthropic` SDK against a running service.

    anthropic_sdk.py BASE_URL [--key KEY]

Each function is one promise to users of the SDK. Prints a line for each and exits with 1 if one is
not kept. tests/anthropic.rs starts the service and this script where python3 has the SDK.
"""

import argparse
import asyncio
import sys

import anthropic

ASK = [{"role": "user", "content": "Write a function that adds two numbers."}]
TOOLS = [{
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
    },
}]


# The package has no argument for it any more.
GREEDY = {"temperature": 0}


def ask(client, **more):
    more = {"messages": ASK, "extra_body": GREEDY, "max_tokens": 20, **more}
    return client.messages.create(model="default", **more)


def message(client):
    answer = ask(client, system="Be brief.")
    assert answer.type == "message" and answer.role == "assistant" and answer.id, answer
    assert answer.content[0].type == "text" and answer.content[0].text, answer
    assert answer.stop_reason in ("end_turn", "max_tokens"), answer
    assert answer.usage.output_tokens > 0, answer
    short = ask(client, max_tokens=2)
    assert short.stop_reason == "max_tokens" and short.usage.output_tokens == 2, short


def streaming(client):
    whole = ask(client)
    with client.messages.stream(model="default", messages=ASK, extra_body=GREEDY,
                                max_tokens=20) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text, (text, whole)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    names = [event.type for event in ask(client, stream=True)]
    assert names[0] == "message_start" and names[-1] == "message_stop", names
    assert names[1] == "content_block_start" and names[-3:-1] == [
        "content_block_stop", "message_delta"], names


def stops(client):
    whole = ask(client, max_tokens=40).content[0].text
    word = whole[len(whole) // 2:][:3]
    answer = ask(client, max_tokens=40, stop_sequences=[word])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == word, answer
    text = "".join(block.text for block in answer.content)
    assert text == whole[:whole.index(word)], (text, whole)


def tools(client):
    choice = {"type": "tool", "name": "weather"}
    answer = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=120)
    assert answer.stop_reason == "tool_use", answer
    use = answer.content[-1]
    assert use.type == "tool_use" and use.name == "weather", answer
    assert use.input["city"] in ("Rome", "Oslo"), answer
    result = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]
    messages = ASK + [{"role": "assistant", "content": answer.content},
                      {"role": "user", "content": result}]
    again = ask(client, messages=messages, tools=TOOLS)
    assert again.stop_reason, again
    with client.messages.stream(model="default", messages=ASK, extra_body=GREEDY, tools=TOOLS,
                                tool_choice=choice, max_tokens=120) as stream:
        final = stream.get_final_message()
    assert final.content[-1].input == use.input, (final, answer)


def counts(client):
    counted = client.messages.count_tokens(model="default", messages=ASK, system="Be brief.")
    answer = ask(client, system="Be brief.")
    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens, (
        counted, usage)


def errors(client):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    try:
        ask(client, messages=[{"role": "user", "content": [image]}])
        raise AssertionError("an image was taken")
    except anthropic.BadRequestError as error:
        assert error.body["type"] == "error", error.body
        assert error.body["error"]["type"] == "invalid_request_error", error.body
        assert "image" in error.body["error"]["message"], error.body
    try:
        ask(client, messages=[{"role": "user", "content": "word " * 20000}])
        raise AssertionError("a prompt beyond the context was taken")
    except anthropic.BadRequestError:
        pass


def keys(client):
    stranger = client.copy(api_key="wrong")
    try:
        ask(stranger)
        raise AssertionError("a wrong key was taken")
    except anthropic.AuthenticationError as error:
        assert error.body["error"]["type"] == "authentication_error", error.body


def asynchronous(client):
    async def several():
        async with anthropic.AsyncAnthropic(base_url=str(client.base_url),
                                            api_key=client.api_key, max_retries=0) as own:
            asked = [own.messages.create(model="default", messages=ASK, extra_body=GREEDY,
                                         max_tokens=8)
                     for _ in range(4)]
            return await asyncio.gather(*asked)
    answers = asyncio.run(several())
    assert len({answer.content[0].text for answer in answers}) == 1, answers
    assert len({answer.id for answer in answers}) == 4, answers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("--key", default="none")
    options = parser.parse_args()
    client = anthropic.Anthropic(base_url=options.base_url, api_key=options.key, max_retries=0)
    promises = [message, streaming, stops, tools, counts, errors, asynchronous]
    if options.key != "none":
        promises.append(keys)
    is_kept = True
    for promise in promises:
        try:
            promise(client)
            print(f"ok    {promise.__name__}")
        except Exception as error:  # the next promise is worth knowing, too
            is_kept = False
            print(f"NOT   {promise.__name__}: {type(error).__name__}: {error}")
    sys.exit(0 if is_kept else 1)


main()
