// Asks a server with OpenAI's, Anthropic's and Vercel's own clients, unchanged. GALLOP_URL and
// GALLOP_KEY name the server, which serves the demo model.
import assert from "node:assert/strict"
import Anthropic from "@anthropic-ai/sdk"
import { createOpenAICompatible } from "@ai-sdk/openai-compatible"
import { generateObject, generateText, streamText, tool } from "ai"
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
const letter = (document) => assert.ok(["x", "y"].includes(JSON.parse(document).letter), document)

async function openai() {
  const c = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 })
  const whole = await c.chat.completions.create({ model, messages, temperature: 0, max_tokens: 30 })
  const text = whole.choices[0].message.content
  assert.match(text, /19/)
  let streamed = ""
  for await (const chunk of await c.chat.completions.create({ model, messages, temperature: 0, max_tokens: 30, stream: true }))
    streamed += chunk.choices[0]?.delta.content ?? ""
  assert.equal(streamed, text)

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
  const runner = c.chat.completions.stream({ model, messages, tools, tool_choice: "required", max_tokens: 100 })
  letter((await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function.arguments)

  const format = { type: "json_schema", json_schema: { name: "choice", strict: true, schema: choose } }
  letter((await c.chat.completions.create({ model, messages, response_format: format })).choices[0].message.content)
  assert.equal((await c.embeddings.create({ model, input: ["a", "b"] })).data.length, 2)
  assert.equal((await c.models.list()).data[0].id, model)
  const response = await c.responses.create({ model, input: ask, temperature: 0 })
  assert.match(response.output_text, /19/)
  let deltas = ""
  for await (const e of await c.responses.create({ model, input: ask, temperature: 0, stream: true }))
    if (e.type === "response.output_text.delta") deltas += e.delta
  assert.equal(deltas, response.output_text)

  const wrong = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 })
  await assert.rejects(wrong.chat.completions.create({ model, messages }), OpenAI.AuthenticationError)
  await assert.rejects(c.chat.completions.create({ model, messages, store: true }), (e) => e.status === 400 && e.param === "store")
  const abort = new AbortController()
  const left = await c.chat.completions.create({ model, messages, stream: true }, { signal: abort.signal })
  for await (const _ of left) abort.abort()
}

async function anthropic() {
  const c = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 })
  const whole = await c.messages.create({ model, messages, max_tokens: 30, temperature: 0 })
  assert.match(whole.content[0].text, /19/)
  const streamed = await c.messages.stream({ model, messages, max_tokens: 30, temperature: 0 }).finalMessage()
  assert.equal(streamed.content[0].text, whole.content[0].text)
  assert.equal(streamed.usage.output_tokens, whole.usage.output_tokens)
  const tools = [{ name: "choose", input_schema: choose }]
  const stream = c.messages.stream({ model, messages, max_tokens: 100, tools, tool_choice: { type: "any" } })
  const called = await stream.finalMessage()
  assert.equal(called.stop_reason, "tool_use")
  letter(JSON.stringify(called.content.at(-1).input))
  await assert.rejects(new Anthropic({ baseURL: url, apiKey: "wrong", maxRetries: 0 }).messages.create({ model, messages, max_tokens: 5 }), Anthropic.AuthenticationError)
}

async function vercel() {
  const provider = createOpenAICompatible({ name: "gallop", baseURL: `${url}/v1`, apiKey, supportsStructuredOutputs: true })
  const demo = provider(model)
  const { text } = await generateText({ model: demo, prompt: ask, temperature: 0 })
  assert.match(text, /19/)
  let streamed = ""
  for await (const part of streamText({ model: demo, prompt: ask, temperature: 0 }).textStream) streamed += part
  assert.equal(streamed, text)
  const { object } = await generateObject({ model: demo, prompt: ask, schema: z.object({ letter: z.enum(["x", "y"]) }) })
  assert.ok(["x", "y"].includes(object.letter))
  const used = []
  await generateText({
    model: demo, prompt: ask, toolChoice: "required", maxOutputTokens: 100,
    tools: { choose: tool({ inputSchema: z.object({ letter: z.enum(["x", "y"]) }), execute: async ({ letter }) => used.push(letter) }) },
  })
  assert.ok(used.length > 0)
}

for (const check of [openai, anthropic, vercel]) {
  await check()
  console.log("ok", check.name)
}
