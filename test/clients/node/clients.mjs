// Asks a server with OpenAI's, Anthropic's and Vercel's own clients, unchanged. GALLOP_URL and
// GALLOP_KEY name the server, which serves the demo model.
import assert from "node:assert/strict"
import Anthropic from "@anthropic-ai/sdk"
import { createOpenAICompatible } from "@ai-sdk/openai-compatible"
import { APICallError, embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai"
import OpenAI from "openai"
import { z } from "zod"

const { GALLOP_URL: url, GALLOP_KEY: apiKey } = process.env
const model = "demo"
const ask = "What is 12 plus 7?"
const messages = [{ role: "user", content: ask }]
const choose = {
  type: "object",
  properties: { letter: { type: "string", enum: ["x", "y"] } },
  required: ["letter"],
  additionalProperties: false,
}
const long = { type: "array", items: { enum: ["x", "y"] }, minItems: 100 } // hundreds of tokens: it takes a while
const longFormat = { type: "json_schema", json_schema: { name: "long", schema: long } }
const letter = (document) => assert.ok(["x", "y"].includes(JSON.parse(document).letter), document)

// How many requests of clients that were gone the server has ended.
async function cancelled() {
  const page = await (await fetch(`${url}/metrics`, { headers: { Authorization: `Bearer ${apiKey}` } })).text()
  return Number(/^gallop_requests_cancelled_total\{model="demo"\} (\S+)$/m.exec(page)[1])
}

async function waitCancelled(before) {
  for (let i = 0; i < 3000; i++) {
    if ((await cancelled()) > before) return
    await new Promise((done) => setTimeout(done, 20))
  }
  assert.fail("the server goes on for nobody")
}

async function openai() {
  const c = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 })
  const whole = await c.chat.completions.create({ model, messages, temperature: 0, max_tokens: 30 })
  const text = whole.choices[0].message.content
  assert.match(text, /19/)
  let streamed = "", usage
  const stream = { stream: true, stream_options: { include_usage: true } }
  for await (const chunk of await c.chat.completions.create({ model, messages, temperature: 0, max_tokens: 30, ...stream })) {
    streamed += chunk.choices[0]?.delta.content ?? ""
    usage = chunk.usage ?? usage
  }
  assert.equal(streamed, text)
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens)
  assert.ok(usage.prompt_tokens_details.cached_tokens > 0)

  const tools = [{ type: "function", function: { name: "choose", parameters: choose } }]
  const history = [...messages]
  for (let i = 0; i < 2; i++) {
    const answer = await c.chat.completions.create({ model, messages: history, tools, tool_choice: "required", max_tokens: 100 })
    assert.equal(answer.choices[0].finish_reason, "tool_calls")
    history.push(answer.choices[0].message)
    for (const call of answer.choices[0].message.tool_calls) {
      letter(call.function.arguments)
      history.push({ role: "tool", tool_call_id: call.id, content: "done" })
    }
  }
  const last = await c.chat.completions.create({ model, messages: history, tools, tool_choice: "none", max_tokens: 100 })
  assert.ok(last.choices[0].message.content && !last.choices[0].message.tool_calls)
  const runner = c.chat.completions.stream({ model, messages, tools, tool_choice: "required", max_tokens: 100 })
  letter((await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function.arguments)

  const format = { type: "json_schema", json_schema: { name: "choice", strict: true, schema: choose } }
  letter((await c.chat.completions.create({ model, messages, response_format: format })).choices[0].message.content)
  assert.equal((await c.embeddings.create({ model, input: ["a", "b"] })).data.length, 2)
  assert.equal((await c.models.list()).data[0].id, model)
  assert.equal((await c.models.retrieve(model)).id, model)
  const response = await c.responses.create({ model, input: ask, temperature: 0 })
  assert.match(response.output_text, /19/)
  let deltas = ""
  for await (const e of await c.responses.create({ model, input: ask, temperature: 0, stream: true }))
    if (e.type === "response.output_text.delta") deltas += e.delta
  assert.equal(deltas, response.output_text)

  const wrong = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 })
  await assert.rejects(wrong.chat.completions.create({ model, messages }), OpenAI.AuthenticationError)
  await assert.rejects(c.chat.completions.create({ model, messages, store: true }), (e) => e.status === 400 && e.param === "store")
  const tooLong = [{ role: "user", content: "word ".repeat(10_000) }]
  await assert.rejects(c.chat.completions.create({ model, messages: tooLong }), (e) => e.code === "context_length_exceeded")
  const before = await cancelled()
  const abort = new AbortController()
  const left = await c.chat.completions.create({ model, messages, stream: true, response_format: longFormat, max_tokens: 400 }, { signal: abort.signal })
  for await (const _ of left) abort.abort()
  await waitCancelled(before)
}

async function anthropic() {
  const c = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 })
  const whole = await c.messages.create({ model, messages, max_tokens: 30, temperature: 0 })
  assert.match(whole.content[0].text, /19/)
  const streamed = await c.messages.stream({ model, messages, max_tokens: 30, temperature: 0 }).finalMessage()
  assert.equal(streamed.content[0].text, whole.content[0].text)
  assert.equal(streamed.usage.output_tokens, whole.usage.output_tokens)
  assert.ok(streamed.usage.output_tokens > 0 && streamed.usage.cache_read_input_tokens > 0)
  const { input_tokens } = await c.messages.countTokens({ model, messages })
  assert.equal(input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens)
  for await (const known of c.models.list()) assert.equal(known.id, model)
  const chosen = await c.messages.create({ model, messages, max_tokens: 50, output_config: { format: { type: "json_schema", schema: choose } } })
  letter(chosen.content[0].text)

  const tools = [{ name: "choose", input_schema: choose }]
  const history = [...messages]
  for (let i = 0; i < 2; i++) {
    const called = await c.messages.stream({ model, messages: history, max_tokens: 100, tools, tool_choice: { type: "any" } }).finalMessage()
    assert.equal(called.stop_reason, "tool_use")
    const calls = called.content.filter((block) => block.type === "tool_use")
    for (const call of calls) letter(JSON.stringify(call.input))
    history.push({ role: "assistant", content: called.content })
    history.push({ role: "user", content: calls.map(({ id }) => ({ type: "tool_result", tool_use_id: id, content: "done" })) })
  }
  const last = await c.messages.create({ model, messages: history, max_tokens: 100, tools, tool_choice: { type: "none" } })
  assert.equal(last.content[0].type, "text")

  const wrong = new Anthropic({ baseURL: url, apiKey: "wrong", maxRetries: 0 })
  await assert.rejects(wrong.messages.create({ model, messages, max_tokens: 5 }), Anthropic.AuthenticationError)
  const tooLong = [{ role: "user", content: "word ".repeat(10_000) }]
  await assert.rejects(c.messages.create({ model, messages: tooLong, max_tokens: 5 }), /prompt is too long/)
  const before = await cancelled()
  const left = await c.messages.create({ model, messages, max_tokens: 400, stream: true, output_config: { format: { type: "json_schema", schema: long } } })
  for await (const _ of left) left.controller.abort()
  await waitCancelled(before)
}

async function vercel() {
  const options = { name: "gallop", baseURL: `${url}/v1`, supportsStructuredOutputs: true, includeUsage: true }
  const provider = createOpenAICompatible({ ...options, apiKey })
  const demo = provider(model)
  const { text, usage } = await generateText({ model: demo, prompt: ask, temperature: 0 })
  assert.match(text, /19/)
  assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0)
  const stream = streamText({ model: demo, prompt: ask, temperature: 0 })
  let streamed = ""
  for await (const part of stream.textStream) streamed += part
  assert.equal(streamed, text)
  assert.equal((await stream.usage).outputTokens, usage.outputTokens)
  const schema = z.object({ letter: z.enum(["x", "y"]) })
  const { output } = await generateText({ model: demo, prompt: ask, output: Output.object({ schema }) })
  assert.ok(["x", "y"].includes(output.letter))

  const used = []
  const { steps } = await generateText({
    model: demo, prompt: ask, maxOutputTokens: 100, toolChoice: "required", stopWhen: stepCountIs(3),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber < 2 ? "required" : "none" }),
    tools: { choose: tool({ inputSchema: schema, execute: async ({ letter }) => used.push(letter) }) },
  })
  assert.equal(steps.length, 3)
  assert.ok(used.length >= 2 && steps[2].text)

  const { embeddings } = await embedMany({ model: provider.embeddingModel(model), values: ["a", "b"] })
  assert.equal(embeddings.length, 2)
  assert.notDeepEqual(embeddings[0], embeddings[1])

  const wrong = createOpenAICompatible({ ...options, apiKey: "wrong" })(model)
  await assert.rejects(generateText({ model: wrong, prompt: ask, maxRetries: 0 }), (e) => APICallError.isInstance(e) && e.statusCode === 401)
  const before = await cancelled()
  const abort = new AbortController()
  const left = streamText({
    model: demo, prompt: ask, maxOutputTokens: 400, abortSignal: abort.signal,
    output: Output.array({ element: z.string().min(1000) }),
  })
  for await (const _ of left.textStream) abort.abort()
  await waitCancelled(before)
}

for (const check of [openai, anthropic, vercel]) {
  await check()
  console.log("ok", check.name)
}
