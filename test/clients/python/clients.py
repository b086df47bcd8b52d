"""Asks a server with OpenAI's and Anthropic's own clients and langchain's, unchanged.

GALLOP_URL and GALLOP_KEY name the server, which serves the demo model.
"""

import json
import os
import re
import time
import urllib.request
from typing import Literal

import anthropic
import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

URL, KEY, MODEL, ASK = os.environ["GALLOP_URL"], os.environ["GALLOP_KEY"], "demo", "What is 12 plus 7?"
CHOOSE = {
    "type": "object",
    "properties": {"letter": {"type": "string", "enum": ["x", "y"]}},
    "required": ["letter"],
    "additionalProperties": False,
}
LONG = {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 100}  # hundreds of tokens: it takes a while
USER = [{"role": "user", "content": ASK}]


def letter(document):
    assert json.loads(document)["letter"] in ("x", "y"), document


def cancelled():
    """How many requests of clients that were gone the server has ended."""
    ask = urllib.request.Request(URL + "/metrics", headers={"Authorization": "Bearer " + KEY})
    with urllib.request.urlopen(ask) as page:
        return float(re.search(r'^gallop_requests_cancelled_total{model="demo"} (\S+)$', page.read().decode(), re.M)[1])


def wait_cancelled(before):
    for _ in range(3000):
        if cancelled() > before:
            return
        time.sleep(0.02)
    raise AssertionError("the server goes on for nobody")


def refused(kind, call):
    try:
        call()
    except kind as e:
        return e
    raise AssertionError("not refused")


def chat():
    c = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
    whole = c.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_tokens=30)
    text = whole.choices[0].message.content
    assert "19" in text and whole.choices[0].finish_reason == "stop", whole
    streamed, usage = "", None
    for chunk in c.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_tokens=30, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        streamed += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert streamed == text and usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0
    extra = c.chat.completions.create(model=MODEL, messages=USER, max_tokens=5, extra_body={"gallop": {"skip": "f2"}})
    assert extra.gallop["skip"] == "f2", extra


def tools():
    c = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
    messages = list(USER)
    offered = [{"type": "function", "function": {"name": "choose", "parameters": CHOOSE}}]
    for _ in range(2):
        answer = c.chat.completions.create(model=MODEL, messages=messages, tools=offered, tool_choice="required", max_tokens=100).choices[0]
        assert answer.finish_reason == "tool_calls", answer
        messages.append(answer.message)
        for call in answer.message.tool_calls:
            letter(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "done"})


def schema():
    c = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
    shape = {"type": "json_schema", "json_schema": {"name": "choice", "schema": CHOOSE, "strict": True}}
    letter(c.chat.completions.create(model=MODEL, messages=USER, response_format=shape, max_tokens=50).choices[0].message.content)


def others():
    c = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
    data = c.embeddings.create(model=MODEL, input=["a", "b"]).data  # in base64
    assert len(data[0].embedding) == len(data[1].embedding) > 8
    assert c.models.list().data[0].id == MODEL == c.models.retrieve(MODEL).id
    scored = c.completions.create(model=MODEL, prompt="one two", max_tokens=0, echo=True, logprobs=1).choices[0]
    assert scored.text == "one two" and scored.logprobs.token_logprobs[0] is None
    response = c.responses.create(model=MODEL, input=ASK, temperature=0)
    assert "19" in response.output_text, response
    streamed = "".join(e.delta for e in c.responses.create(model=MODEL, input=ASK, temperature=0, stream=True) if e.type == "response.output_text.delta")
    assert streamed == response.output_text


def errors():
    def ask(key=KEY, **more):
        return openai.OpenAI(base_url=URL + "/v1", api_key=key, max_retries=0).chat.completions.create(**{"model": MODEL, "messages": USER, **more})

    refused(openai.AuthenticationError, lambda: ask("wrong"))
    assert refused(openai.BadRequestError, lambda: ask(store=True)).param == "store"
    long = [{"role": "user", "content": "word " * 10_000}]
    assert refused(openai.BadRequestError, lambda: ask(messages=long)).code == "context_length_exceeded"


def cancel():
    c, before = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0), cancelled()
    shape = {"type": "json_schema", "json_schema": {"name": "long", "schema": LONG}}
    stream = c.chat.completions.create(model=MODEL, messages=USER, response_format=shape, max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    wait_cancelled(before)


def messages():
    c = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    greedy = {"temperature": 0}  # a parameter of older versions of this client
    whole = c.messages.create(model=MODEL, messages=USER, max_tokens=30, extra_body=greedy)
    assert "19" in whole.content[0].text and whole.stop_reason == "end_turn", whole
    with c.messages.stream(model=MODEL, messages=USER, max_tokens=30, extra_body=greedy) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    assert c.messages.count_tokens(model=MODEL, messages=USER).input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    assert c.models.list().data[0].id == MODEL
    shape = {"format": {"type": "json_schema", "schema": CHOOSE}}
    letter(c.messages.create(model=MODEL, messages=USER, max_tokens=50, output_config=shape).content[0].text)
    offered = [{"name": "choose", "input_schema": CHOOSE}]
    history = list(USER)
    for _ in range(2):
        answer = c.messages.create(model=MODEL, messages=history, max_tokens=100, tools=offered, tool_choice={"type": "any"})
        assert answer.stop_reason == "tool_use", answer
        calls = [block for block in answer.content if block.type == "tool_use"]
        for call in calls:
            letter(json.dumps(call.input))
        history.append({"role": "assistant", "content": answer.content})
        history.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "done"} for call in calls]})
    assert c.messages.create(model=MODEL, messages=history, max_tokens=100, tools=offered, tool_choice={"type": "none"}).content[0].type == "text"

    wrong = anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0)
    refused(anthropic.AuthenticationError, lambda: wrong.messages.create(model=MODEL, messages=USER, max_tokens=5))
    long = [{"role": "user", "content": "word " * 10_000}]
    assert "prompt is too long" in str(refused(anthropic.BadRequestError, lambda: c.messages.create(model=MODEL, messages=long, max_tokens=5)))
    before = cancelled()
    with c.messages.stream(model=MODEL, messages=USER, max_tokens=400, output_config={"format": {"type": "json_schema", "schema": LONG}}) as stream:
        next(iter(stream))
    wait_cancelled(before)


def langchain():
    options = {"base_url": URL + "/v1", "api_key": KEY, "model": MODEL, "temperature": 0, "max_retries": 0}
    model = ChatOpenAI(**options, max_tokens=100)
    whole = model.invoke(ASK)
    assert "19" in whole.content and whole.usage_metadata["output_tokens"] > 0, whole
    streamed = None
    for chunk in ChatOpenAI(**options, max_tokens=100, stream_usage=True).stream(ASK):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.content == whole.content and streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]

    @tool
    def choose(letter: Literal["x", "y"]) -> str:
        """Chooses a letter."""
        return letter

    history = [HumanMessage(ASK)]
    for _ in range(2):
        answer = model.bind_tools([choose], tool_choice="any").invoke(history)
        assert answer.tool_calls, answer
        history.append(answer)
        for call in answer.tool_calls:
            result = choose.invoke(call)
            assert isinstance(result, ToolMessage)
            history.append(result)
    assert model.bind_tools([choose], tool_choice="none").invoke(history).content
    assert model.with_structured_output(CHOOSE | {"title": "choice"}, method="json_schema").invoke(ASK)["letter"] in ("x", "y")

    # Without a check of its length by the tokenizer of OpenAI's models, which is fetched.
    embeddings = OpenAIEmbeddings(base_url=URL + "/v1", api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
    a, b = embeddings.embed_documents(["a", "b"])
    assert len(a) == len(b) and a != b

    refused(openai.AuthenticationError, lambda: ChatOpenAI(**options | {"api_key": "wrong"}).invoke(ASK))
    before = cancelled()
    shape = {"type": "json_schema", "json_schema": {"name": "long", "schema": LONG}}
    stream = ChatOpenAI(**options, max_tokens=400).stream(ASK, response_format=shape)
    next(stream)
    stream.close()
    wait_cancelled(before)


for check in (chat, tools, schema, others, errors, cancel, messages, langchain):
    check()
    print("ok", check.__name__)
