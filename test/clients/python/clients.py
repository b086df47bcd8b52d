"""Asks a server with OpenAI's and Anthropic's own clients and langchain's, unchanged.

GALLOP_URL and GALLOP_KEY name the server, which serves the demo model.
"""

import json
import os

import anthropic
import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

URL, KEY, MODEL, ASK = os.environ["GALLOP_URL"], os.environ["GALLOP_KEY"], "demo", "What is 12 plus 7?"
CHOOSE = {
    "type": "object",
    "properties": {"letter": {"type": "string", "enum": ["x", "y"]}},
    "required": ["letter"],
    "additionalProperties": False,
}
USER = [{"role": "user", "content": ASK}]


def letter(document):
    assert json.loads(document)["letter"] in ("x", "y"), document


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
    def refused(kind, **more):
        try:
            openai.OpenAI(base_url=URL + "/v1", api_key=more.pop("api_key", KEY), max_retries=0).chat.completions.create(
                **{"model": MODEL, "messages": USER, **more}
            )
        except kind as e:
            return e
        raise AssertionError(f"not refused: {more}")

    refused(openai.AuthenticationError, api_key="wrong")
    assert refused(openai.BadRequestError, store=True).param == "store"
    assert refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 10_000}]).code == "context_length_exceeded"


def messages():
    c = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    greedy = {"temperature": 0}  # a parameter of older versions of this client
    whole = c.messages.create(model=MODEL, messages=USER, max_tokens=30, extra_body=greedy)
    assert "19" in whole.content[0].text and whole.stop_reason == "end_turn", whole
    with c.messages.stream(model=MODEL, messages=USER, max_tokens=30, extra_body=greedy) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    assert c.messages.count_tokens(model=MODEL, messages=USER).input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    offered = [{"name": "choose", "input_schema": CHOOSE}]
    answer = c.messages.create(model=MODEL, messages=USER, max_tokens=100, tools=offered, tool_choice={"type": "any"})
    assert answer.stop_reason == "tool_use", answer
    call = answer.content[-1]
    letter(json.dumps(call.input))
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
    more = USER + [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert c.messages.create(model=MODEL, messages=more, max_tokens=100, tools=offered).role == "assistant"


def langchain():
    model = ChatOpenAI(base_url=URL + "/v1", api_key=KEY, model=MODEL, temperature=0, max_retries=0, max_tokens=100)
    text = model.invoke(ASK).content
    assert "19" in text
    assert "".join(chunk.content for chunk in model.stream(ASK)) == text

    @tool
    def choose(letter: str) -> str:
        """Chooses a letter."""
        return letter

    calls = model.bind_tools([choose], tool_choice="any").invoke(ASK).tool_calls
    assert calls and calls[0]["name"] == "choose", calls
    assert model.with_structured_output(CHOOSE | {"title": "choice"}, method="json_schema").invoke(ASK)["letter"] in ("x", "y")


for check in (chat, tools, schema, others, errors, messages, langchain):
    check()
    print("ok", check.__name__)
